"""Matching of detections with labelled objects: correct, extra, missing, or of the wrong class.

One score threshold, one IoU. COCO's AP needs neither and is the measure; this is for figures and confusions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections

CORRECT, WRONG_CLASS, EXTRA, IGNORED = "correct", "wrong class", "extra", "ignored"
MISSING = "missing"
"""Outcome of an object without any detection at its place."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The outcomes of one image.

    Attributes:
        kept: (N,), the rows of the detections at or above the threshold, by descending score.
        outcomes: outcomes of each of them, CORRECT, WRONG_CLASS, EXTRA or IGNORED (a crowd, which may be found or not).
        objects: (N,), the row of the object that each was matched with, -1 for none.
        missing: the rows of the objects that nothing was matched with, crowds left out.
    """

    kept: NDArray[np.int64]
    outcomes: tuple[str, ...]
    objects: NDArray[np.int64]
    missing: NDArray[np.int64]


def match(truth: LabelledImage, found: Detections, score: float, iou: float = 0.5) -> Matches:
    """Match detections with objects, each at most once.

    By descending score, each detection takes the free object of its class that it covers best, with IoU >= `iou`. Then
    those that are left take free objects of other classes in the same way: the place is right and the class wrong. What
    then is left lies in a crowd by half or more of its own area, or is extra; so are second finds of one object.
    """
    kept = np.flatnonzero(found.scores >= score)
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    overlap = _iou(found.boxes[kept], truth.boxes)
    same = found.labels[kept][:, None] == truth.labels[None]
    objects = np.full(len(kept), -1, np.int64)
    free = ~truth.crowd
    for allowed in (same, ~same):
        for row in np.flatnonzero(objects < 0):
            worth = np.where(allowed[row] & free & (overlap[row] >= iou), overlap[row], -1.0)
            if worth.size and worth.max() >= 0:
                objects[row] = worth.argmax()
                free[objects[row]] = False
    in_crowd = _covered(found.boxes[kept], truth.boxes[truth.crowd]) >= 0.5
    outcomes = [
        (CORRECT if same[row, place] else WRONG_CLASS) if place >= 0 else IGNORED if in_crowd[row] else EXTRA
        for row, place in enumerate(objects.tolist())
    ]
    return Matches(kept, tuple(outcomes), objects, np.flatnonzero(free))


def confusion(data: LabelledData, found: Sequence[Detections], matches: Iterable[Matches]) -> NDArray[np.int64]:
    """Confusion matrix of labelled (rows) and detected classes (columns): (C + 1, C + 1).

    The last column counts missed objects, the last row extra detections.
    """
    classes = len(data.classes)
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for image, detections, matched in zip(data.images, found, matches, strict=True):
        for row, place, outcome in zip(matched.kept, matched.objects, matched.outcomes, strict=True):
            if outcome != IGNORED:
                counts[image.labels[place] if place >= 0 else classes, detections.labels[row]] += 1
        counts[:classes, classes] += np.bincount(image.labels[matched.missing], minlength=classes)
    return counts


def precision_by_class(
    data: LabelledData, found: Sequence[Detections], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of right detections of each class among those that reach its threshold (C,), and their number, (C,)."""
    right, counted = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for truth, detections in zip(data.images, found, strict=True):
        sure = detections.subset(np.flatnonzero(detections.scores >= thresholds[detections.labels]))
        matches = match(truth, sure, 0.0)
        for row, outcome in zip(matches.kept, matches.outcomes, strict=True):
            counted[sure.labels[row]] += outcome != IGNORED
            right[sure.labels[row]] += outcome == CORRECT
    return right / np.maximum(counted, 1), counted


def balanced_score(data: LabelledData, found: Sequence[Detections]) -> float:
    """The score that as many detections reach as there are labelled objects: a weak detector shows nothing at 0.5."""
    objects = sum(int((~image.crowd).sum()) for image in data.images)
    ranked = np.sort(np.concatenate([np.zeros(0, np.float32), *(each.scores for each in found)]))[::-1]
    return float(ranked[max(0, min(objects, len(ranked)) - 1)]) if len(ranked) else 0.5


def _iou(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    return box_iou(torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()).numpy()  # type: ignore[no-any-return]


def _covered(boxes: NDArray[np.float32], crowds: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest share of each box (N, 4) that one of the crowds (M, 4) covers, (N,)."""
    low, high = np.maximum(boxes[:, None, :2], crowds[None, :, :2]), np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    own = np.clip(boxes[:, 2:] - boxes[:, :2], 1e-6, None).prod(1)
    covered: NDArray[np.float64] = (inside / own[:, None]).max(1, initial=0.0)
    return covered
