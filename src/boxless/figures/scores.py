"""Pictures of how a run went and what came out: curves, detections, and scores class by class."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxless.data.annotations.read import LabelledData
from boxless.data.images import BadImage, decode
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, verified
from boxless.evaluation.matching import IGNORED, Matches, balanced_score, confusion, match
from boxless.evaluation.precision_recall import precision_recall
from boxless.figures.views import Picture, shrink
from boxless.geometry.boxes import best_iou
from boxless.plots.curves import training_curves
from boxless.plots.outcomes import GROUPS, MatchedImage, examples, outcome_counts, outcome_pairs
from boxless.plots.scores import class_gains, confusion_matrix, precision_recall_curves
from boxless.runs.run import Run
from boxless.tasks.compare_table import REFERENCE, SCRATCH, Amount, efficiency_figures, read_table
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


class MatchedDetections:
    """A run's detections in labelled images, matched with the labels at the score that shows enough.

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
        self.found: list[Detections] = verified(self.labels, [found[row] for row in kept])
        self.score = min(0.5, balanced_score(self.labels, self.found))
        pairs = zip(self.labels.images, self.found, strict=True)
        self.matches: list[Matches] = [match(image, each, self.score) for image, each in pairs]


def draw_detections(results: MatchedDetections) -> Iterator[Picture]:
    """Labels and detections in pairs, sorted by what became of them, and how many became what."""
    groups: dict[str, Sequence[MatchedImage]] = {}
    taken: set[int] = set()
    for group in GROUPS:
        chosen = [row for row in examples(results.matches, results.found, group, 2 + len(taken)) if row not in taken][
            :2
        ]
        taken.update(chosen)
        groups[group] = [shown for row in chosen if (shown := _matched_image(results, row)) is not None]
    counts = dict.fromkeys(GROUPS, 0)
    for matched in results.matches:
        for outcome in matched.outcomes:
            counts[outcome] = counts.get(outcome, 0) + 1
        counts["missing"] += len(matched.missing)
    numbers = ", ".join(f"{counts[group]} {group}" for group in GROUPS)
    summary = f"{numbers} in {len(results.labels)} images, at IoU 0.5 and score {100 * results.score:.0f} and above"
    yield Picture(
        "detections",
        outcome_pairs(groups, results.labels.classes),
        f"Pairs of labels (left) and detections (right), sorted by what became of them: {summary}.",
    )
    yield Picture(
        "detections-counts",
        outcome_counts(results.labels, results.found, results.matches, _overlaps(results)),
        f"What became of the objects of each class, and how well detections fit objects: {summary}.",
    )


def _matched_image(results: MatchedDetections, row: int) -> MatchedImage | None:
    """An image as it is drawn, no longer than it need be, with everything in its pixels."""
    truth, found = results.labels.images[row], results.found[row]
    try:
        image, scale = shrink(decode(truth.path), 640)
    except BadImage:  # it went away since
        return None
    return MatchedImage(image, truth.boxes * scale, truth, found.boxes * scale, found, results.matches[row])


def _overlaps(results: MatchedDetections) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The IoU of each detection that counts with the object that fits it best."""
    best = [np.zeros(0)]
    for image, found, matched in zip(results.labels.images, results.found, results.matches, strict=True):
        kept = matched.kept[[outcome != IGNORED for outcome in matched.outcomes]]
        boxes, objects = (torch.as_tensor(each).double() for each in (found.boxes[kept], image.boxes[~image.crowd]))
        best.append(best_iou(boxes, objects).numpy())
    return np.concatenate(best)


def draw_precision_recall(results: MatchedDetections) -> Picture:
    """Precision over recall at two IoUs.

    Of LVIS the areas are `boxless evaluate`'s by metric lvis, but of images with more than 300 detections: those of
    unknown classes are left out before and not after the 300 most confident are taken.
    """
    curves = precision_recall(results.labels, results.found)
    known = np.nan_to_num(curves.means, nan=0.0).mean(1)
    return Picture(
        "precision-recall",
        precision_recall_curves(curves, results.labels.classes),
        f"Precision over recall of {len(results.labels)} images: AP50 {100 * known[0]:.1f}, AP75 {100 * known[1]:.1f}.",
    )


def draw_confusion(results: MatchedDetections) -> Picture:
    """Draw the confusion matrix."""
    counts = confusion(results.labels, results.found, results.matches)
    right, wrong = int(np.diagonal(counts)[:-1].sum()), int(counts[:-1, :-1].sum() - np.diagonal(counts)[:-1].sum())
    return Picture(
        "confusion",
        confusion_matrix(counts, results.labels.classes, results.score),
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
    finished = (comparison / "finetune").glob("*/*/*/seed-*/summary.json")
    runs = {file.parent.relative_to(comparison / "finetune").parts: file.parent for file in finished}
    detectors = list(dict.fromkeys(detector for detector, *_ in sorted(runs)))
    drawn = 0
    for detector, start in dict.fromkeys((detector, start) for detector, start, *_ in sorted(runs)):
        paired = [
            (own, runs[detector, REFERENCE, labels, seed], Amount.of_folder(labels))
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
    scores = Run(run).read("summary.json").get("per_class", {}).get("bbox")
    if scores is None:
        raise UserError(f"{run / 'summary.json'}: expected a finished fine-tuning's AP of boxes by class")
    return {name: ap for name, ap in scores.items() if ap is not None}
