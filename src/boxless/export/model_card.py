"""A model card: what a run's weights are, made from what the run left behind."""

import json
import math
import statistics
from pathlib import PurePath
from typing import Any

import yaml

from boxless.export.weights import LICENCE
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run


def card(run: Run, recipe: PretrainRecipe | FinetuneRecipe, figures: list[str]) -> str:
    """The model card: recipe, data, results with their spread, figures, intended use and limits.

    Args:
        run: finished.
        recipe: its recipe.
        figures: paths that the card shows, relative to it.
    """
    pretrained = isinstance(recipe, PretrainRecipe)
    tags = ["boxless", "object-detection", *(["self-supervised"] if pretrained else [])]
    header = {"library_name": "boxless", "tags": tags}
    header |= {} if pretrained else {"pipeline_tag": _task(recipe)}
    title = _title(recipe)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {title}",
        _use(recipe),
        "## Data",
        _data(run, recipe),
        "## Results",
        _results(run, recipe),
        *[f"![{PurePath(name).stem}]({name})" for name in figures],
        "## Training",
        _training(run),
        "## Intended use and limits",
        _limits(recipe),
        "## Licence",
        LICENCE + "\nIts owner has not named a licence here yet: add one above (`license:`) before others build on it.",
    ]
    return "\n\n".join(parts) + "\n"


def _task(recipe: PretrainRecipe | FinetuneRecipe) -> str:
    targets = recipe.detector.targets if isinstance(recipe, FinetuneRecipe) else "boxes"
    return {"boxes": "object-detection", "keypoints": "keypoint-detection"}.get(targets, "image-segmentation")


def _title(recipe: PretrainRecipe | FinetuneRecipe) -> str:
    if isinstance(recipe, PretrainRecipe):
        return f"{recipe.trunk.backbone} pretrained by {recipe.method.name}, without labels"
    return f"{recipe.detector.kind} on {recipe.trunk.backbone}"


def _use(recipe: PretrainRecipe | FinetuneRecipe) -> str:
    if isinstance(recipe, PretrainRecipe):
        command = "boxless finetune --data train.json --val val.json --weights FOLDER --out runs/mine"
    else:
        command = "boxless predict --run FOLDER --data images/ --out found/"
    colours = f"RGB in 0..1, minus {list(recipe.trunk.mean)}, divided by {list(recipe.trunk.std)}"
    return (
        f"```\n{command}\n```\n\nFOLDER is a copy of this one; `--weights` takes `hf://user/name` too. For "
        f"other libraries: `boxless export --run FOLDER --to ...`. The network sees {colours}."
    )


def _data(run: Run, recipe: PretrainRecipe | FinetuneRecipe) -> str:
    summary = run.summary
    if isinstance(recipe, PretrainRecipe):
        return (
            f"{run.inputs.get('images', 'Unlabelled')} images without labels, seen {summary['images_seen']} times in "
            f"all, in {summary['steps']} steps. Where they are from: *for the owner to say.*"
        )
    labels = json.loads((run.path / "labels.json").read_text())
    classes = ", ".join(labels["classes"])
    return (
        f"{summary['labelled_images']} labelled images (SHA-256 of their ids: `{labels.get('sha256', 'unknown')}`). "
        f"Where they are from: *for the owner to say.*\n\nClasses: {classes}."
    )


def _results(run: Run, recipe: PretrainRecipe | FinetuneRecipe) -> str:
    summary = run.summary
    if isinstance(recipe, PretrainRecipe):
        return (
            f"Health of the embeddings at the end: {summary['health']}. What the weights are worth on a task was not "
            "measured in this run; `boxless compare` and `boxless probe` do."
        )
    others = _siblings(run)
    lines = ["| metric | this run | mean of seeds | standard deviation | seeds |", "|---|---|---|---|---|"]
    for kind, values in summary["scores"].items():
        for name, value in values.items():
            seeds = [one[kind][name] for one in others if one.get(kind, {}).get(name) is not None]
            spread = statistics.stdev(seeds) if len(seeds) > 1 else math.nan
            cells = (_percent(value), _percent(statistics.fmean(seeds) if seeds else None), _percent(spread))
            lines.append(f"| {kind} {name} | {' | '.join(cells)} | {len(seeds)} |")
    note = "Percent, on the validation labels of the run."
    if len(others) < 2:
        note += " One seed only: the spread was not measured, and differences of a few points may be chance."
    return "\n".join(lines) + f"\n\n{note}"


def _siblings(run: Run) -> list[dict[str, Any]]:
    """Scores of the same cell of a comparison with every seed, this run's own included."""
    path = run.path.resolve()
    folders = sorted(path.parent.glob("seed-*")) if path.name.startswith("seed-") else [path]
    return [Run(folder).summary["scores"] for folder in folders if Run(folder).finished]


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _training(run: Run) -> str:
    summary, environment = run.summary, run.environment
    came = str(summary.get("init") or summary.get("weights"))
    start = came if came in ("random weights", "from scratch") else "weights, of which this was loaded: " + came
    start = start.splitlines()[0].partition(" (from ")[0]
    boxless, torch, machine = (environment.get(key, "unknown") for key in ("boxless", "torch", "machine"))
    return (
        f"{summary['steps']} steps in {summary['seconds']:.0f} s with boxless {boxless}, torch {torch} ({machine}). "
        f"Start: {start}. Every number of the run is in `recipe.yaml`."
    )


def _limits(recipe: PretrainRecipe | FinetuneRecipe) -> str:
    size = f"{recipe.min_size[-1]} px" if isinstance(recipe, FinetuneRecipe) else "the views' size"
    own = (
        "To start detectors from, on images like those that it has seen; it detects nothing by itself."
        if isinstance(recipe, PretrainRecipe)
        else f"To find the classes above in images like those that it has seen, with the shorter side at {size}."
    )
    return (
        f"{own} On other images (another camera, light, place or scale) measure it first with labels of your own. It "
        "was not tested for fairness or safety, and is not meant to decide about people."
    )
