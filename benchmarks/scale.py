"""What SoCo costs on 1, 8 and 64 GPUs, and what 100 million images need: the tables of docs/scale.md.

    python benchmarks/scale.py
    python benchmarks/scale.py --out docs/scale.md
    python benchmarks/scale.py --images-per-second 1200      # of one GPU, where it has been measured

Each number that goes in has a kind: measured (by a benchmark, from benchmarks/results), counted (on the network itself,
without computing anything), stated (by who sells or publishes it) or assumed. All else follows by the formulas below.
No GPU is needed; about ten seconds.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from environment import RESULTS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from boxless.detectors.trunk import Trunk
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe

BEGIN, END = "<!-- written by benchmarks/scale.py -->", "<!-- end of benchmarks/scale.py -->"
PER_MACHINE = 8
"""GPUs in one machine."""
BATCH = {1: 256, 8: 2048, 64: 2048}
"""Images per step by number of GPUs: the recipe's, then the paper's."""
MANY = 100_000_000


@dataclass(frozen=True)
class Input:
    """A number that goes in, how it is written, what kind it is of and where it comes from."""

    value: float
    text: str
    kind: str
    source: str


def counted() -> dict[str, float]:
    """Of SoCo's paper recipe: FLOPs of a step per image, trained parameters, batch norms by whether they are trained.

    A multiply-add counts as two. The pass back runs through all levels where a box is pooled, so that there are boxes
    of all levels that a 224 px view has.
    """
    recipe = load("soco-r50-fpn", PretrainRecipe)
    with torch.device("meta"):
        method = recipe.method.build(Trunk(recipe.trunk))
    assert isinstance(method, nn.Module)
    module, images = method, 2
    whole = torch.tensor([[0.0, 0.0, 224.0, 224.0]]).expand(images, 4)
    views = tuple(
        View(torch.empty(images, 3, spec.size, spec.size, device="meta"), crop_and_resize(whole, spec.size, spec.size))
        for spec in recipe.method.views()
    )
    corners = torch.tensor([40.0, 80.0, 130.0, 224.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), corners, corners], 1).expand(images, 4, 4)
    generator = torch.Generator().manual_seed(0)
    unknown = patch("torch.autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    with unknown, FlopCounterMode(display=False) as counter:
        module(views, boxes, torch.ones(images, 4, dtype=torch.bool), generator).loss.backward()
    norms = [norm for norm in module.modules() if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm)]
    trained = sum(norm.weight.requires_grad for norm in norms)
    return {
        "flops": counter.get_total_flops() / images,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "trained_norms": trained,
        "target_norms": len(norms) - trained,
        "views": len(views),
    }


def inputs(results: Path, share: float, measured_rate: float | None) -> dict[str, Input]:
    """Everything that goes in, by name."""
    pipeline, search, startup = (
        json.loads((results / f"{name}.json").read_text()) for name in ("pipeline", "selective_search", "startup")
    )
    network = counted()
    decoding = pipeline["images_per_second"]["boxless, in a worker"]["median"]
    fast, paper = (search["results"][f"boxless {name}"] for name in ("fast", "paper"))
    boxes = fast["boxes_per_image_after_limits"]
    first, again = (startup["starts"]["folders"][time]["processor"] for time in ("first", "again"))
    order = startup["memory"]["folders"]["all"]["order"]
    core, searcher, starter = (
        f"one {content['environment']['processor']} core{', with bf16' if content['environment']['bf16'] else ''}"
        for content in (pipeline, search, startup)
    )
    searched = f"selective_search.json, {searcher}, n = {search['images']} images"
    started = f"startup.json, {starter}, n = 1, {startup['images']:,} images in {startup['folders']:,} folders"
    rate = measured_rate or share * 790e12 / network["flops"]
    rate_source = "given to this script" if measured_rate else "share of the matrix rate / FLOPs"
    return {
        "flops": Input(network["flops"], f"{network['flops'] / 1e9:.1f} GFLOP", "counted", "SoCo's step, per image"),
        "matrix": Input(790e12, "790 TFLOP/s", "assumed", "bf16 matrix products of one H200"),
        "share": Input(share, f"{share:.0%}", "assumed", "of that rate in training"),
        "rate": Input(rate, f"{rate:,.0f} images/s", "measured" if measured_rate else "computed", rate_source),
        "gradients": Input(
            4 * network["parameters"],
            f"{4 * network['parameters'] / 1e6:.0f} MB",
            "counted",
            f"{network['parameters'] / 1e6:.1f} M parameters, float32",
        ),
        "norms": Input(
            network["views"] * (2 * network["trained_norms"] + network["target_norms"]),
            f"{network['views'] * (2 * network['trained_norms'] + network['target_norms']):.0f} a step",
            "counted",
            "exchanges of SyncBN: forward, back, target",
        ),
        "nvlink": Input(450e9, "450 GB/s", "stated", "NVLink of one H200, each way (NVIDIA: 900 both ways)"),
        "network": Input(12.5e9, "12.5 GB/s", "stated", "100 Gb/s per machine, for its 8 GPUs together"),
        "attained": Input(0.8, "80%", "assumed", "of both links' rates"),
        "latency": Input(20e-6, "20 µs", "assumed", "one small exchange within a machine"),
        "far_latency": Input(50e-6, "50 µs", "assumed", "one small exchange among machines"),
        "images": Input(1_281_167, "1,281,167", "stated", "images of ImageNet-1k"),
        "file": Input(108e3, "108 kB", "stated", "a file of ImageNet-1k (138 GB in all)"),
        "decoding": Input(
            decoding,
            f"{decoding:.0f} images/s",
            "measured",
            f"decode and two 224 px crops, pipeline.json, {core}, n = {pipeline['images']} images of COCO, "
            f"median of {pipeline['repeats']}",
        ),
        "fast": Input(
            fast["seconds_per_image"], f"{fast['seconds_per_image']:.2f} s", "measured", f"preset fast: {searched}"
        ),
        "paper": Input(
            paper["seconds_per_image"], f"{paper['seconds_per_image']:.2f} s", "measured", f"preset paper: {searched}"
        ),
        "boxes": Input(boxes, f"{boxes:.0f} an image", "measured", f"preset fast, after the limits: {searched}"),
        "first": Input(first, f"{first:.2f} s", "measured", f"first index: {started}"),
        "again": Input(again, f"{again:.2f} s", "measured", f"second start: {started}"),
        "order": Input(order, f"{order:.3f} s", "measured", f"order of an epoch: {started}"),
    }


def all_reduce(size: float, gpus: int, given: dict[str, Input]) -> float:
    """Seconds to sum `size` bytes over all GPUs: a ring within each machine, and one of machines.

    Of n members, each sends and gets 2 (n - 1) / n of the bytes.
    """
    within, machines = min(gpus, PER_MACHINE), max(1, gpus // PER_MACHINE)
    near = 2 * (within - 1) / within * size / given["nvlink"].value
    far = 2 * (machines - 1) / machines * size / given["network"].value
    return (near + far) / given["attained"].value


def training(gpus: int, epochs: int, given: dict[str, Input]) -> dict[str, float]:
    """SoCo's cost: times of a step in ms, hours of the run, and what the input has to bring."""
    batch, rate = BATCH[gpus], gpus * given["rate"].value
    steps = epochs * (given["images"].value // batch)
    reduce = all_reduce(given["gradients"].value, gpus, given)
    latency = 0.0 if gpus == 1 else given["latency" if gpus <= PER_MACHINE else "far_latency"].value
    norms = given["norms"].value * latency
    step = batch / rate
    return {
        "batch": batch,
        "steps": steps,
        "compute": step * 1e3,
        "reduce": reduce * 1e3,
        "norms": norms * 1e3,
        "least": steps * (max(step, reduce) + norms) / 3600,
        "most": steps * (step + reduce + norms) / 3600,
        "rate": batch / (max(step, reduce) + norms),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def cost_table(given: dict[str, Input], epochs: int) -> str:
    """SoCo on ImageNet by number of GPUs."""
    costs = {gpus: training(gpus, epochs, given) for gpus in BATCH}

    def row(name: str, *forms: tuple[str, str]) -> list[str]:
        return [name, *(" to ".join(f"{cost[key]:{form}}" for key, form in forms) for cost in costs.values())]

    rates = [cost["rate"] for cost in costs.values()]
    machines = [max(1, gpus // PER_MACHINE) for gpus in BATCH]
    return table(
        ["", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in BATCH)],
        [
            row("images per step", ("batch", ",.0f")),
            row("compute per step, ms", ("compute", ".1f")),
            row("summing gradients, ms", ("reduce", ".1f")),
            row("norms over all GPUs, ms", ("norms", ".1f")),
            row(f"**{epochs} epochs, hours**", ("least", ".1f"), ("most", ".1f")),
            ["images/s, at best", *(f"{rate:,.0f}" for rate in rates)],
            ["JPEG files read, MB/s per machine", *each(rates, machines, lambda r: r * given["file"].value / 1e6)],
            ["cores that decode, per machine", *each(rates, machines, lambda r: r / given["decoding"].value)],
            ["pixels to the GPUs, MB/s per machine", *each(rates, machines, lambda r: r * 2 * 3 * 224**2 / 1e6)],
        ],
    )


def each(rates: Sequence[float], machines: Sequence[int], of: Any) -> list[str]:
    """What a rate asks of one of so many machines."""
    return [f"{of(rate / count):,.0f}" for rate, count in zip(rates, machines, strict=True)]


def many_table(given: dict[str, Input], results: Path) -> str:
    """What 100 million images need."""
    started = json.loads((results / "startup.json").read_text())
    key = started["key_bytes"]
    files = MANY * given["file"].value
    boxes = MANY * given["boxes"].value * 16
    million = MANY / started["images"]

    def searched(preset: str) -> str:
        hours = MANY * given[preset].value / 3600
        return f"{hours:,.0f} core hours: {hours / 1000:.1f} h on 1,000 cores"

    rate = training(64, 1, given)["rate"]
    read = rate * given["file"].value
    return table(
        ["", "needs"],
        [
            ["files", f"{files / 1e12:.1f} TB; {files / 500e6:,.0f} shards of 500 MB"],
            ["proposals, preset fast", searched("fast")],
            ["proposals, preset paper", searched("paper")],
            ["boxes, preset fast", f"{boxes / 1e9:.0f} GB in memory or mapped; inside shards they take none"],
            ["keys of a folder's index", f"{MANY * key / 1e9:.1f} GB, mapped"],
            ["index of shards", f"{MANY * (key + 32) / 1e9:.1f} GB, mapped"],
            ["first index of folders", f"{million * given['first'].value / 60:.0f} min of a core"],
            ["second start", f"{million * given['again'].value:.1f} s of a core"],
            [
                "order of an epoch",
                f"{8 * MANY / 1e9:.1f} GB per training process, {million * given['order'].value:.0f} s",
            ],
            ["one epoch of SoCo on 64 GPUs", f"{MANY / rate / 3600:.1f} h at best, {rate:,.0f} images/s"],
            ["... reads", f"{read / 1e9:.1f} GB/s in all, {read / 8e6:,.0f} MB/s per machine"],
        ],
    )


def page(results: Path, share: float, measured_rate: float | None, epochs: int) -> str:
    """All tables as Markdown."""
    given = inputs(results, share, measured_rate)
    parts = [
        "### What goes in",
        table(["number", "kind", "what, and where from"], [[i.text, i.kind, i.source] for i in given.values()]),
        f"### SoCo, ResNet-50-FPN, {epochs} epochs of ImageNet (computed)",
        cost_table(given, epochs),
        "### 100 million images (computed)",
        many_table(given, results),
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="of the card's matrix rate that training reaches")
    parser.add_argument("--images-per-second", type=float, help="of SoCo on one GPU, instead of that share")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="page whose marked part is rewritten")
    arguments = parser.parse_args(argv)
    made = page(arguments.results, arguments.share, arguments.images_per_second, arguments.epochs)
    print(made)
    if arguments.out:
        before, _, rest = arguments.out.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.out.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
