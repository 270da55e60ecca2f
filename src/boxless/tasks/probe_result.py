"""Settings and results of a probe, with its table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxless.data.images import skipped_report
from boxless.evaluation.probes import Score

NOTES = {
    "linear": "Top-1 accuracy of a linear classifier (preset {preset}) that learned from {views}; in brackets Wilson's "
    "95 % interval over n examples.",
    "knn": "Top-1 accuracy of the k nearest neighbours (of all, where there are fewer), weighted as in DINO; in "
    "brackets Wilson's 95 % interval over n examples.",
    "svm": "Mean over classes of the average precision of one linear SVM each (costs of {preset}), on n images: the "
    "area below the interpolated curve, as in DetCo's VOC07 table, and VOC 2007's own rule of 11 points.",
    "low_shot": "mAP of one linear SVM per class (C = 1) from k images per class; in brackets the 95 % interval over n "
    "draws of these images, the same for all weights.",
    "few_shot": "Accuracy of logistic regression; in brackets the 95 % interval over n episodes, the same for all "
    "weights.",
    "correspondence": "Share of the {cells} cells of {level} whose most similar cell in the mirrored image in other "
    "colours is their own, at {size} px; in brackets the 95 % interval over n images, changed alike for all weights."
    "{asymmetry}",
}
VIEWS = {
    True: "a new random crop of each example in each epoch, as in the papers",
    False: "one view of each example (the papers augment: no comparison with their tables without --crops true)",
}
ASYMMETRY = " A ResNet's cells lie symmetrically at 32 k + 1 px alone: elsewhere what it finds may be a cell off."


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe; see `boxless probe`."""

    kind: str
    data: str | list[str]
    val: str | None
    size: int
    preset: str
    crops: bool
    level: str
    seed: int
    processes: int


@dataclass(frozen=True)
class ProbeResult:
    """Scores of several weights.

    Attributes:
        path: folder with KIND.csv, KIND.md, figures/KIND.png and the features.
        kind: kind of the probe.
        scores: scores of each of the weights, the random ones first.
        chance: score of guessing, 0..1.
        note: explanation of the scores.
        skipped: file -> reason of the images that could not be read.
    """

    path: Path
    kind: str
    scores: tuple[Score, ...]
    chance: float
    note: str
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [table(self.scores), "", f"{self.note} Guessing reaches {100 * self.chance:.1f}."]
        if self.skipped:
            lines.append(skipped_report(self.skipped))
        return "\n".join(lines)


def table(scores: Sequence[Score]) -> str:
    """Scores as a Markdown table, in percent: a row for each of the weights, a column for each measure."""
    measures = list(dict.fromkeys(score.measure for score in scores))
    lines = [f"| weights | {' | '.join(measures)} | n |", "|---" * (len(measures) + 2) + "|"]
    for weights in dict.fromkeys(score.weights for score in scores):
        own = {score.measure: score for score in scores if score.weights == weights}
        cells = [_cell(own[measure]) for measure in measures]
        lines.append(f"| {weights} | {' | '.join(cells)} | {next(iter(own.values())).n} |")
    return "\n".join(lines)


def _cell(score: Score) -> str:
    interval = "" if np.isnan(score.low) else f" [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return "no class to measure" if np.isnan(score.value) else f"{100 * score.value:.1f}{interval}"


def as_csv(result: ProbeResult) -> str:
    """The scores as CSV, 0..1: a row for each measure of each of the weights."""
    text = io.StringIO()
    rows: list[dict[str, Any]] = [
        {"kind": result.kind, **asdict(score), "chance": result.chance} for score in result.scores
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
