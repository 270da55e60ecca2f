"""The commands of benchmarks/methods.py run; what they measure is not looked at here."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxless.recipes.schema import METHODS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_costs_and_health_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("methods")
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{seed}.png")

    def run(*words: object) -> str:
        benchmark.main(["--results", str(tmp_path), *map(str, words)])
        return capsys.readouterr().out

    small = ("cost", "--arch", "resnet18", "--size", 32, "--batch", 4, "--repeats", 1, "--threads", 1)
    assert "moco / byol" not in run(*small, "--methods", "moco")  # the reference is measured along
    rows = json.loads((tmp_path / "methods_cost.json").read_text())["rows"]
    assert set(rows) == {"byol", "moco"}
    turns = [turn for row in rows.values() for turn in row["turns"]]
    assert len(turns) == 2 and all(turn["seconds"] > 0 and turn["memory"] > 1 for turn in turns)
    assert "repeat" not in run(*small, "--methods", "moco,byol")  # nothing is missing
    with pytest.raises(SystemExit, match="size 32, not 64"):
        run(*small, "--size", 64)

    run("health", "--data", images, "--out", tmp_path / "runs", "--steps", 2, "--batch", 4, "--methods", "byol,up-detr")
    rows = json.loads((tmp_path / "methods_health.json").read_text())["rows"]
    assert {name: row["detector"] for name, row in rows.items()} == {"byol": "faster_rcnn", "up-detr": "detr"}
    for row in rows.values():
        assert row["steps"] == 2 and len(row["spread"]) == 2 and not row["unused"]
        assert row["loaded"] == dict.fromkeys(row["trains"], 1.0)

    run("table", "--out", tmp_path / "methods.md")
    page = (tmp_path / "methods.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(lines) == set(METHODS)
    assert "| 1.00 |" in lines["byol"] and "healthy" in lines["byol"] and "2006.07733" in lines["byol"]
    assert re.search(r"\| \d+\.\d\d \|", lines["moco"]) and "not measured" in lines["soco"]
    assert "Self-EMD.**" in page and "the authors' repository calls DetCo" in page
