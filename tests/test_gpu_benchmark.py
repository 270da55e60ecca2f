"""The parts of benchmarks/gpu.py run, in small, without a GPU; what they measure here is not looked at."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TAKEN = (
    *("roofline", "byol, compiled", "lightly as written", "byol from files", "input alone", "soco, compiled"),
    *("input alone, decoder=gpu", "faster_rcnn", "torchvision's reference loop", "decoder", "profile, eager"),
)
"""Others need lightly or a GPU, or are these once more."""


@pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")  # torchvision's, of decode_jpeg
def test_parts_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark, inside = importlib.import_module("gpu"), importlib.import_module("gpu_inside")
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(5):
        noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{seed}.jpg")
    parts = {
        group: {name: part for name, part in parts.items() if name in TAKEN} for group, parts in benchmark.PARTS.items()
    }
    taken: list[Any] = []

    def at_once(part: Callable[..., dict[str, float]], *where: Any) -> dict[str, float]:
        taken.append(part)
        return part(*where)

    monkeypatch.setattr(benchmark, "PARTS", parts)
    monkeypatch.setattr(benchmark, "in_process", at_once)
    threads = torch.get_num_threads()
    words = ["--tiny", "--results", str(tmp_path), "--images", str(images)]
    benchmark.main([*words, *benchmark.PARTS])
    torch.set_num_threads(threads)
    capsys.readouterr()
    count = len(taken)
    benchmark.main(words)  # nothing is missing
    assert len(taken) == count
    page = capsys.readouterr().out
    content = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert set(content["rows"]) == set(TAKEN)
    assert not [row for row in content["rows"].values() if "failed" in row]
    named = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    rows = {name.removesuffix(f" ({benchmark.STANDS_IN})"): line for name, line in named.items()}  # where no lightly is
    for name, (unit, goal) in benchmark.GOALS.items():
        if "bf16-mixed" not in name:
            assert f"{unit} | {goal:,} {unit} | " in rows[name] and rows[name].endswith("reached |")
    # A ResNet-18 has 0.0372 billion multiply-adds at 32 px (1.82 at 224 px, divided by 49): 12 times counted as two
    # operations, being forward (2 views) and backward (twice as much), and the target's forward.
    flops = content["rows"]["roofline"]["GFLOP per image"]
    assert flops == pytest.approx((2 * 3 + 2) * 2 * 0.0372, rel=0.1)
    assert inside.group_of("triton_red_fused_native_batch_norm") == "norms"
    assert inside.group_of("triton_poi_fused_relu_3") == "compiled"
    assert inside.group_of("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32") == "convolutions and products"
