"""VOC 2007's 11-point average precision, over ten overlaps, as Detectron2's PascalVOCDetectionEvaluator has it.

The devkit counts pixels from 1 and both ends in, hence its +1 in every width; in boxless's frame these are plain
lengths. Detectron2 also rounds scores to 3 digits and boxes to 0.1 px on the way, which is not done here.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boxless.data.annotations.types import LabelledData
from boxless.evaluation.average_precision import Detections, Scores

OVERLAPS = np.arange(50, 100, 5) / 100
RECALLS = np.arange(0.0, 1.1, 0.1)  # as the devkit makes them, their rounding errors included


def voc_average_precision(truth: LabelledData, detections: Sequence[Detections]) -> Scores:
    """Score detections, one entry per image of `truth` in its order, by boxes.

    A detection belongs to the object of its class that it overlaps most, and hits it where the overlap is above the
    threshold and no surer detection has hit it; `crowd` objects (VOC's difficult ones) count neither for nor against. A
    class without other objects has AP nan and stays out of the means. Scores by size, and AR, are nan.
    """
    boxes, image, label, values = _stacked([(found.boxes, found.labels, found.scores) for found in detections])
    scores = values.astype(np.float64)
    gt_boxes, gt_image, gt_label, crowd = _stacked([(each.boxes, each.labels, each.crowd) for each in truth.images])
    group, gt_group = (i * len(truth.classes) + k for i, k in ((image, label), (gt_image, gt_label)))
    overlap, match = _best_overlaps(boxes, group, gt_boxes, gt_group)
    hard = np.append(crowd, False)[match].astype(bool)  # -1, no object of the class: not hard
    table = np.full((len(truth.classes), len(OVERLAPS)), math.nan)
    for k in range(len(truth.classes)):
        objects = int((~crowd.astype(bool) & (gt_label == k)).sum())
        rows = np.flatnonzero(label == k)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        for column, threshold in enumerate(OVERLAPS if objects else ()):
            table[k, column] = _eleven_points(overlap[rows] > threshold, match[rows], hard[rows], objects)
    known = table[~np.isnan(table[:, 0])]
    by_overlap = known.mean(0) if len(known) else np.full(len(OVERLAPS), math.nan)
    ap, ap50, ap75 = (float(value) for value in (by_overlap.mean(), by_overlap[0], by_overlap[5]))
    per_class = dict(zip(truth.classes, table.mean(1).tolist(), strict=True))
    return Scores(ap, ap50, ap75, math.nan, math.nan, math.nan, math.nan, per_class)


def _stacked(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.generic]]],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.generic]]:
    """Boxes (N, 4), images (N,), labels (N,) and values (N,) of all images together."""
    image = np.repeat(np.arange(len(parts)), [len(boxes) for boxes, _, _ in parts])
    boxes = np.concatenate([np.zeros((0, 4)), *(np.asarray(boxes, np.float64).reshape(-1, 4) for boxes, _, _ in parts)])
    labels = np.concatenate([np.zeros(0, np.int64), *(labels for _, labels, _ in parts)])
    return boxes, image, labels, np.concatenate([values for _, _, values in parts])


def _best_overlaps(
    boxes: NDArray[np.float64], group: NDArray[np.int64], gt_boxes: NDArray[np.float64], gt_group: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each box the largest IoU with an object of its group and that object; 0 and -1 if there is none."""
    order = np.argsort(gt_group, kind="stable")
    first, last = (np.searchsorted(gt_group[order], group, side) for side in ("left", "right"))
    count = last - first
    rows = np.repeat(np.arange(len(boxes)), count)  # every pair of box and object in a group
    offset = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    objects = order[first[rows] + offset]
    a, b = boxes[rows], gt_boxes[objects]
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    iou = inner / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner)
    best = np.lexsort((offset, -iou, rows))  # of equal ones the first
    best = best[np.unique(rows[best], return_index=True)[1]]
    overlap, match = np.zeros(len(boxes)), np.full(len(boxes), -1)
    overlap[rows[best]], match[rows[best]] = iou[best], objects[best]
    return overlap, match


def _eleven_points(over: NDArray[np.bool_], match: NDArray[np.int64], hard: NDArray[np.bool_], objects: int) -> float:
    """AP of one class at one overlap, of its detections by descending score."""
    hits = np.zeros(len(over), bool)
    candidates = np.flatnonzero(over & ~hard)
    hits[candidates[np.unique(match[candidates], return_index=True)[1]]] = True
    misses = ~hits & ~(over & hard)
    true, false = np.cumsum(hits), np.cumsum(misses)
    recall, precision = true / objects, true / np.maximum(true + false, np.finfo(np.float64).eps)
    return sum(float(precision[recall >= level].max(initial=0.0)) for level in RECALLS) / len(RECALLS)
