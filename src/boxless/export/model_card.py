"""The model card of a published run, filled into the template model_card.md."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from boxless.detectors.detector import DetectorConfig
from boxless.export.weights import LICENCE
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe, TrainingRecipe
from boxless.runs.run import Run

Scores = dict[str, dict[str, float | None]]
"""bbox, segm, ... -> name of the score -> its value, 0..1."""
TASKS = {"boxes": "object-detection", "keypoints": "keypoint-detection"}
"""The Hugging Face Hub's names of tasks, by a detector's targets; the others are image-segmentation."""


def model_card(run: Run, figures: Sequence[str]) -> str:
    """The card of a finished run: recipe, data, results with their spread, figures, intended use and limits.

    Args:
        run: finished.
        figures: paths that the card shows, relative to it.
    """
    recipe, summary = run.recipe, run.summary
    detector = recipe.detector if isinstance(recipe, FinetuneRecipe) else None
    seeds = _scores_of_seeds(run) if detector else []
    environment = Environment(
        loader=PackageLoader("boxless", "export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(
        run=run,
        recipe=recipe,
        trunk=recipe.trunk,
        summary=summary,
        detector=detector,
        header=_header(detector),
        title=_title(recipe),
        rows=list(_rows(summary["scores"], seeds)) if detector else [],
        seeds=len(seeds),
        start=_start(summary),
        figures=figures,
        licence=LICENCE,
    )


def _header(detector: DetectorConfig | None) -> str:
    """The metadata that the Hub reads."""
    header: dict[str, Any] = {"library_name": "boxless", "tags": ["boxless", "object-detection"]}
    if detector is None:
        header["tags"].append("self-supervised")
    else:
        header["pipeline_tag"] = TASKS.get(detector.targets, "image-segmentation")
    return yaml.safe_dump(header, sort_keys=False)


def _title(recipe: TrainingRecipe) -> str:
    if isinstance(recipe, FinetuneRecipe):
        return f"{recipe.detector.kind} on {recipe.trunk.backbone}"
    assert isinstance(recipe, PretrainRecipe)
    return f"{recipe.trunk.backbone} pretrained by {recipe.method.name}, without labels"


def _scores_of_seeds(run: Run) -> list[Scores]:
    """Scores of the same cell of a comparison with every seed, this run's own included."""
    path = run.path.resolve()
    folders = sorted(path.parent.glob("seed-*")) if path.name.startswith("seed-") else [path]
    return [Run(folder).summary["scores"] for folder in folders if Run(folder).finished]


def _rows(scores: Scores, of_seeds: Sequence[Scores]) -> Iterator[tuple[str, ...]]:
    """For each score its name, its value, mean and standard deviation over the seeds, and how many these are."""
    for kind, values in scores.items():
        for name, value in values.items():
            known = [score for each in of_seeds if (score := each.get(kind, {}).get(name)) is not None]
            spread = statistics.stdev(known) if len(known) > 1 else None
            mean = statistics.fmean(known) if known else None
            yield f"{kind} {name}", _percent(value), _percent(mean), _percent(spread), str(len(known))


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _start(summary: dict[str, Any]) -> str:
    """The weights that the run started from, in a line without the file's name."""
    weights = str(summary.get("init") or summary.get("weights"))
    start = (
        weights if weights in ("random weights", "from scratch") else f"weights, of which this was loaded: {weights}"
    )
    return start.splitlines()[0].partition(" (from ")[0]
