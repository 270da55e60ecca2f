"""Precision against recall, as COCO interpolates it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxless.data.annotations.read import LabelledData
from boxless.evaluation.average_precision import Detections, precision_tables

IOUS = (0.5, 0.75)


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Curves of boxes.

    Attributes:
        recall: (101,), 0 to 1.
        precision: (IoUs, 101, C), 0..1, at each of `IOUS`; NaN for a class without labelled objects.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """(IoUs, 101): over the classes that have objects."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no class has objects
            means: NDArray[np.float64] = np.nanmean(self.precision, 2)
        return means


def precision_recall(truth: LabelledData, found: Sequence[Detections]) -> PrecisionRecall:
    """The curves of detections, one entry per image of `truth` in its order; their areas are AP50 and AP75.

    LVIS's labels are taken by LVIS's rules, whatever the metric of the recipe: see `average_precision`.
    """
    tables, *_ = precision_tables(truth, found, federated=bool(truth.frequencies))
    precision = tables[[0, 5], :, :, 0, -1]  # of the IoUs 0.5, 0.55, ... 0.95
    return PrecisionRecall(np.linspace(0, 1, precision.shape[1]), np.where(precision < 0, np.nan, precision))
