"""Pictures of how a run went and what came out: curves, detections, and scores class by class."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from boxless.data.annotations.read import LabelledData
from boxless.data.images import BadImage, decode
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, judged
from boxless.evaluation.matching import IGNORED, Matches, balanced_score, confusion, match
from boxless.evaluation.precision_recall import precision_recall
from boxless.figures.views import Picture, small
from boxless.plots.curves import training_curves
from boxless.plots.outcomes import GROUPS, Judged, examples, outcome_counts, outcome_pairs
from boxless.plots.scores import class_gains, confusion_matrix, precision_recall_curves
from boxless.runs.run import Run
from boxless.tasks.compare_table import REFERENCE, SCRATCH, efficiency_figures, read_table
from boxless.tasks.detect import detect_labelled, load_detector
from boxless.tasks.labels import validation_labels

NAMES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "momentum": "momentum of the target (EMA)",
    "health/spread": "spread (0: collapsed)",
    "health/rank": "effective rank",
    "health/alignment": "alignment (0: positives agree)",
    "health/uniformity": "uniformity (low: even)",
}
"""Titles of the curves that runs have in common; terms of losses and scores keep their own names."""


def draw_curves(run: Path) -> Picture:
    """Everything that a run, finished or not, has written down of its steps: loss, its terms, rates, health, scores."""
    metrics = Run(run).metrics
    if not metrics:
        raise UserError(f"{run / 'metrics.csv'}: holds no metrics; has the run logged a step yet?")
    ends = [name for name in NAMES if name in metrics]
    terms = [name for name in metrics if name not in NAMES]
    order = [*ends[:1], *terms, *ends[1:]] if ends[:1] == ["loss"] else [*terms, *ends]
    titles = {name: NAMES.get(name, name.replace("_", " ")) for name in order}
    last = max((steps[-1] for steps, _ in metrics.values()), default=0)
    loss = metrics.get("loss", ([], []))[1]
    fell = f"; the loss goes from {loss[0]:.3g} to {loss[-1]:.3g}" if loss else ""
    return Picture(
        "curves",
        training_curves({titles[name]: metrics[name] for name in order}),
        f"{', '.join(titles[name] for name in order)} of {run.resolve().name} over {last + 1} steps{fell}.",
    )


class Looked:
    """Detections of a run in labelled images and their outcomes, above a score that shows enough of them.

    Detections of classes that the labels do not speak of (LVIS) are left out, as AP leaves them out.
    """

    def __init__(self, run: str, data: str, quiet: bool) -> None:
        detector, classes, recipe = load_detector(run)
        if recipe.detector.targets == "classes":
            raise UserError(f"run {run}: is FCN, which finds no boxes; boxless evaluate draws its class maps")
        labels = validation_labels(data, classes, quiet)
        found, skipped = detect_labelled(detector, labels, recipe)
        kept = [row for row, image in enumerate(labels.images) if str(image.path) not in skipped]
        self.labels: LabelledData = labels.subset(kept)
        self.found: list[Detections] = judged(self.labels, [found[row] for row in kept])
        self.score = min(0.5, balanced_score(self.labels, self.found))
        pairs = zip(self.labels.images, self.found, strict=True)
        self.matches: list[Matches] = [match(image, each, self.score) for image, each in pairs]


@lru_cache(maxsize=1)
def look(run: str, data: str, quiet: bool) -> Looked:
    """`Looked`, kept for the next picture of the same run and labels."""
    return Looked(run, data, quiet)


def draw_detections(looked: Looked) -> Iterator[Picture]:
    """Labels and detections in pairs, sorted by what became of them, and how many became what."""
    groups: dict[str, Sequence[Judged]] = {}
    taken: set[int] = set()
    for group in GROUPS:
        chosen = [row for row in examples(looked.matches, looked.found, group, 2 + len(taken)) if row not in taken][:2]
        taken.update(chosen)
        groups[group] = [shown for row in chosen if (shown := _judged(looked, row)) is not None]
    counts = dict.fromkeys(GROUPS, 0)
    for matched in looked.matches:
        for outcome in matched.outcomes:
            counts[outcome] = counts.get(outcome, 0) + 1
        counts["missing"] += len(matched.missing)
    numbers = ", ".join(f"{counts[group]} {group}" for group in GROUPS)
    said = f"{numbers} in {len(looked.labels)} images, at IoU 0.5 and score {100 * looked.score:.0f} and above"
    yield Picture(
        "detections",
        outcome_pairs(groups, looked.labels.classes),
        f"Pairs of labels (left) and detections (right), sorted by what became of them: {said}.",
    )
    yield Picture(
        "detections-counts",
        outcome_counts(looked.labels, looked.found, looked.matches, _overlaps(looked)),
        f"What became of the objects of each class, and how well detections fit objects: {said}.",
    )


def _judged(looked: Looked, row: int) -> Judged | None:
    """An image as it is drawn, no longer than it need be, with everything in its pixels."""
    truth, found = looked.labels.images[row], looked.found[row]
    try:
        image, scale = small(decode(truth.path), 640)
    except BadImage:  # it went away since
        return None
    return Judged(image, truth.boxes * scale, truth, found.boxes * scale, found, looked.matches[row])


def _overlaps(looked: Looked) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The IoU of each detection that counts with the object that fits it best."""
    best = [np.zeros(0)]
    for image, found, matched in zip(looked.labels.images, looked.found, looked.matches, strict=True):
        kept = matched.kept[[outcome != IGNORED for outcome in matched.outcomes]]
        ours = torch.as_tensor(found.boxes[kept]).double()
        theirs = torch.as_tensor(image.boxes[~image.crowd]).double()
        best.append(torch.cat([box_iou(ours, theirs), torch.zeros(len(ours), 1)], 1).amax(1).numpy())
    return np.concatenate(best)


def draw_precision_recall(looked: Looked) -> Picture:
    """Precision over recall at two IoUs.

    Of LVIS the areas are `boxless evaluate`'s by metric lvis, but of images with more than 300 detections: those of
    unknown classes are left out before and not after the 300 most confident are taken.
    """
    curves = precision_recall(looked.labels, looked.found)
    known = np.nan_to_num(curves.means, nan=0.0).mean(1)
    return Picture(
        "precision-recall",
        precision_recall_curves(curves, looked.labels.classes),
        f"Precision over recall of {len(looked.labels)} images: AP50 {100 * known[0]:.1f}, AP75 {100 * known[1]:.1f}.",
    )


def draw_confusion(looked: Looked) -> Picture:
    """Draw the confusion matrix."""
    counts = confusion(looked.labels, looked.found, looked.matches)
    right, wrong = int(np.diagonal(counts)[:-1].sum()), int(counts[:-1, :-1].sum() - np.diagonal(counts)[:-1].sum())
    return Picture(
        "confusion",
        confusion_matrix(counts, looked.labels.classes, looked.score),
        f"Labelled objects by what they were found as: {right} of their class, {wrong} of another one, "
        f"{int(counts[:-1, -1].sum())} missed, {int(counts[-1, :-1].sum())} extra detections.",
    )


def draw_label_efficiency(comparison: Path) -> Iterator[Picture]:
    """AP over the share of labels, from comparison.csv; a figure for each detector."""
    try:
        cells = read_table(comparison / "comparison.csv")
    except OSError as error:
        raise UserError(f"{comparison}: not a finished comparison (no comparison.csv)") from error
    for picture in efficiency_figures(cells):
        yield Picture(*picture)


def draw_gains(comparison: Path) -> Iterator[Picture]:
    """Gains by class of each start of a comparison over the one from scratch, with the most labels that both have.

    A comparison that goes on is drawn as far as it is.
    """
    finished = (comparison / "finetune").glob("*/*/labels-*/seed-*/summary.json")
    runs = {file.parent.relative_to(comparison / "finetune").parts: file.parent for file in finished}
    detectors = list(dict.fromkeys(detector for detector, *_ in sorted(runs)))
    drawn = 0
    for detector, start in dict.fromkeys((detector, start) for detector, start, *_ in sorted(runs)):
        paired = [
            (own, runs[detector, REFERENCE, labels, seed], float(labels.removeprefix("labels-")))
            for (its, name, labels, seed), own in sorted(runs.items())
            if (its, name) == (detector, start) and (detector, REFERENCE, labels, seed) in runs
        ]
        if start == REFERENCE or not paired:
            continue
        most = max(share for *_, share in paired)
        pairs = [(own, other) for own, other, share in paired if share == most]
        name = f"gain-{start}" if len(detectors) == 1 else f"gain-{detector}-{start}"
        drawn += 1
        yield _gain(name, pairs, start, SCRATCH)
    if not drawn:
        raise UserError(f"{comparison}: kind gain needs finished fine-tunings of the start none and of another one")


def draw_gain(run: Path, reference: Path) -> Picture:
    """Gains by class of a run over another."""
    return _gain("gain", [(run, reference)], run.resolve().name, reference.resolve().name)


def _gain(name: str, pairs: Sequence[tuple[Path, Path]], start: str, reference: str) -> Picture:
    gains: dict[str, list[float]] = {}
    for own, other in pairs:
        ours, theirs = _per_class(own), _per_class(other)
        for label in ours.keys() & theirs.keys():
            gains.setdefault(label, []).append(ours[label] - theirs[label])
    if not gains:
        raise UserError(f"{pairs[0][0]}: kind gain needs two runs with classes in common")
    mean = 100 * float(np.mean([np.mean(values) for values in gains.values()]))
    return Picture(
        name,
        class_gains({label: gains[label] for label in sorted(gains)}, start, reference),
        f"Gain in AP by class of {start} over {reference}, {len(pairs)} run(s) each: {mean:+.1f} points in the mean of "
        f"{len(gains)} classes.",
    )


def _per_class(run: Path) -> Mapping[str, float]:
    try:
        summary = json.loads((run / "summary.json").read_text())["per_class"]
        return {name: ap for name, ap in summary["bbox"].items() if ap is not None}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run / 'summary.json'}: expected a finished fine-tuning's AP of boxes by class") from error
