"""What each method costs and whether its small recipe learns on real images: the table of docs/methods.md.

    python benchmarks/methods.py cost
    python benchmarks/methods.py health --data coco256/images/train coco256/images/val --out runs/health
    python benchmarks/methods.py table

`cost` times a training step of every method as `boxless pretrain` takes it, on synthetic images of one size and with
one optimiser (SGD), relative to BYOL's step. Methods take turns: each turn is a fresh process, two steps to warm up and
one that counts. With --threads 1 the time is what the core worked, so that other programs matter less. `health`
pretrains with every method's small recipe, at one size, on the same images, and loads what came out into the detector
that it is for. `table` writes what both have found. The first two write down each figure as soon as it is there, do
only what is missing when they are given again, and everything with --again.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from environment import RESULTS, cores, facts, write
from methods_table import goals, page
from training_step import boxless_step, take_turn

import boxless
from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.detectors.all import DETECTORS
from boxless.detectors.trunk import Trunk
from boxless.interop.weights import load_trunk
from boxless.methods.all import METHODS
from boxless.recipes.load import load, names
from boxless.recipes.schema import FinetuneRecipe, PretrainOptim, PretrainRecipe
from boxless.runs.weights import with_trunk_of
from boxless.training.device import resolve_precision

REFERENCE = "byol"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lc-byol-two-crops": ("lc-byol", {"crops": 2}),
    "self-emd-two-views": ("self-emd", {"third_view": False}),
}
"""Rows of `cost` beside the methods: a method and the keys that differ."""
EXACT = ("arch", "size", "batch", "threads", "precision", "processor", "gpu", "torch")
"""What figures must share to stand in one table."""


def paper_recipe(method: str) -> PretrainRecipe:
    name = next(name for name in (f"{method}-r50", f"{method}-r50-fpn") if name in names())
    return load(name, PretrainRecipe)


def cost_recipe(row: str, arch: str, size: int) -> PretrainRecipe:
    method, changes = VARIANTS.get(row, (row, {}))
    recipe = paper_recipe(method)
    return replace(
        recipe,
        method=replace(recipe.method, **changes).at_size(size),
        trunk=replace(recipe.trunk, backbone=arch),
        optim=PretrainOptim("sgd", base_lr=0.06),
    )


def cost(arguments: argparse.Namespace) -> None:
    chosen = list(dict.fromkeys([REFERENCE, *arguments.methods]))
    settings = {
        **{key: getattr(arguments, key) for key in ("arch", "size", "batch", "threads")},
        "precision": resolve_precision("auto"),
        **facts("torch", "torchvision"),
    }
    file = arguments.results / "methods_cost.json"
    content = begin(file, settings, EXACT)
    rows = content["rows"]
    if arguments.again:
        rows |= {row: {} for row in chosen}
    for repeat in range(arguments.repeats):
        for row in chosen:  # in turns, so that a busy hour is unfair to none
            known = rows.setdefault(row, {})
            if len(known.get("turns", [])) > repeat:
                continue
            recipe = cost_recipe(row, arguments.arch, arguments.size)
            try:
                turn = take_turn(partial(boxless_step, recipe, arguments.batch), arguments.threads)
            except RuntimeError as error:
                print(f"repeat {repeat + 1}: {row} failed: {error}", flush=True)
                continue
            known["pixels"] = sum(spec.size**2 for spec in recipe.method.views())
            known.setdefault("turns", []).append(turn._asdict())
            write(file, content)
            print(f"repeat {repeat + 1}: {row} {turn.seconds:.2f} s, {turn.memory:.0f} MiB", flush=True)
    for row, other, ratio, goal in goals(rows):
        print(f"{row} / {other}: {ratio}{'; ' if goal else ''}{goal}")


def health(arguments: argparse.Namespace) -> None:
    index = index_images(arguments.data)
    settings = {
        "data": " + ".join("/".join(Path(folder).parts[-3:]) for folder in arguments.data),
        "images": len(index),
        **{key: getattr(arguments, key) for key in ("steps", "size", "batch")},
        **facts("torch", "torchvision"),
    }
    file = arguments.results / "methods_health.json"
    content = begin(file, settings, ("images", "steps", "size", "batch"))
    rows = content["rows"]
    for name in arguments.methods:
        if "verdict" in rows.get(name, {}) and not arguments.again:
            continue
        try:
            rows[name] = health_of(name, index, arguments)
        except Exception as error:  # one method's failure is a result of this table
            rows[name] = {"failed": (str(error).splitlines() or [type(error).__name__])[0]}
        write(file, content)
        print(f"{name}: {rows[name]}", flush=True)


def health_of(name: str, index: ImageIndex, arguments: argparse.Namespace) -> dict[str, Any]:
    method = load(f"{name}-small", PretrainRecipe).method.at_size(arguments.size)
    run = boxless.pretrain(
        data=arguments.data,
        out=str(arguments.out / name),
        recipe=f"{name}-small",
        quiet=True,
        method=method,
        batch_size=arguments.batch,
        epochs=arguments.steps / (len(index) // arguments.batch),
        checkpoint_every=arguments.steps,
        stop_on_collapse=False,
    )
    summary, metrics = run.summary, run.metrics
    kind = "detr" if load(run.recipe_file, PretrainRecipe).trunk.neck == "transformer" else "faster_rcnn"
    finetuning = with_trunk_of(FinetuneRecipe(DETECTORS[kind]()), str(run.path))
    trunk = Trunk(finetuning.trunk)
    report = load_trunk(trunk, run.weights, minimum=1.0)
    finetuning.detector.build(trunk, 1)
    measures = {key: metrics[f"health/{key}"][1] for key in ("spread", "rank", "alignment")}
    return {
        "verdict": summary["health"],
        "steps": summary["steps"],
        "measures": len(measures["spread"]),
        **{key: [round(values[0], 3), round(values[-1], 3)] for key, values in measures.items()},
        "lowest_spread": round(min(measures["spread"]), 3),
        "loss": [round(metrics["loss"][1][place], 3) for place in (0, -1)],
        "images_per_second": summary["images_per_second"],
        "trains": summary["trains"],
        "detector": kind,
        "loaded": {part: report.shares[part] for part in summary["trains"]},
        "unused": len(report.unused),
    }


def table(arguments: argparse.Namespace) -> None:
    results = [read(arguments.results / f"methods_{kind}.json") for kind in ("cost", "health")]
    recipes = {name: paper_recipe(name) for name in METHODS}
    arguments.out.write_text(page(recipes, *results))
    print(arguments.out)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {"settings": {}, "rows": {}}


def begin(file: Path, settings: dict[str, Any], exact: tuple[str, ...]) -> dict[str, Any]:
    """What a file holds so far, where it was measured with the same settings."""
    content = read(file)
    old = content["settings"]
    other = [f"{key} {old[key]}, not {settings[key]}" for key in exact if old and old[key] != settings[key]]
    if other and content["rows"]:
        sys.exit(f"{file}: holds figures of {', '.join(other)}; name another folder with --results, or remove the file")
    return {"settings": settings, "rows": content["rows"]}


def method_list(rows: list[str], text: str) -> list[str]:
    chosen = [name.strip() for name in text.split(",")]
    unknown = [name for name in chosen if name not in rows]
    if unknown:
        raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; there are {', '.join(rows)}")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    commands = parser.add_subparsers(required=True, metavar="cost|health|table")
    rows = [*METHODS, *VARIANTS]

    timing = commands.add_parser("cost")
    timing.add_argument("--arch", default="resnet50")
    timing.add_argument("--size", type=int, default=224)
    timing.add_argument("--batch", type=int, default=8)
    timing.add_argument("--repeats", type=int, default=3)
    timing.add_argument("--threads", type=int, default=cores())
    timing.add_argument("--methods", type=partial(method_list, rows), default=rows, help="a,b; BYOL is always there")
    timing.set_defaults(command=cost)

    pretraining = commands.add_parser("health")
    pretraining.add_argument("--data", nargs="+", required=True, help="folders of images")
    pretraining.add_argument("--out", type=Path, required=True, help="folder of the runs")
    pretraining.add_argument("--steps", type=int, default=300)
    pretraining.add_argument("--size", type=int, default=64)
    pretraining.add_argument("--batch", type=int, default=8)
    pretraining.add_argument("--methods", type=partial(method_list, list(METHODS)), default=list(METHODS), help="a,b")
    pretraining.set_defaults(command=health)
    for command in (timing, pretraining):
        command.add_argument("--again", action="store_true", help="measure even if results exist")

    writing = commands.add_parser("table")
    writing.add_argument("--out", type=Path, default=RESULTS.parents[1] / "docs" / "methods.md")
    writing.set_defaults(command=table)
    chosen = parser.parse_args(arguments)
    chosen.command(chosen)


if __name__ == "__main__":
    main()
