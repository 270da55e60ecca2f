"""Mean intersection over union of class maps, over a whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxless.data.annotations.class_maps import VOID


@dataclass(frozen=True)
class SegmentationScores:
    """Each 0..1; `per_class` has each class's IoU, nan if neither labels nor predictions have it."""

    mean_iou: float
    pixel_accuracy: float
    per_class: dict[str, float]

    def as_dict(self) -> dict[str, float]:
        """The summary numbers under their usual names: mIoU, and the share of right pixels."""
        return {"mIoU": self.mean_iou, "pixel accuracy": self.pixel_accuracy}


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each class (rows) by the class that they were taken for (columns): (C, C).

    `truth`, `predicted`: (H, W), 0-based; void pixels of the truth, 255, count nowhere.
    """
    there = truth != VOID
    pairs = truth[there].astype(np.int64) * classes + predicted[there]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def mean_iou(counts: NDArray[np.int64], classes: Sequence[str]) -> SegmentationScores:
    """Scores of the confusion (C, C) of all images together.

    A class that neither labels nor predictions have stays out of the mean, as in OpenMMLab.
    """
    right = counts.diagonal().astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - right
    with np.errstate(invalid="ignore"):  # 0 / 0 is the nan that is meant
        shares = right / union
        accuracy = right.sum() / np.float64(counts.sum())
    known = shares[~np.isnan(shares)]
    mean = float(known.mean()) if len(known) else float("nan")
    return SegmentationScores(mean, float(accuracy), dict(zip(classes, shares.tolist(), strict=True)))
