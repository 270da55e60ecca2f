"""Precision against recall, as COCO interpolates it, computed by faster-coco-eval."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from boxless.data.labels import LabelledData
from boxless.evaluation.average_precision import Detections, coco_results

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
    """The curves of detections, one entry per image of `truth` in its order; their areas are AP50 and AP75."""
    coco = COCO(truth.as_coco())
    evaluation = COCOeval_faster(coco, coco.loadRes(coco_results(truth, found)), "bbox", print_function=_silent)
    evaluation.params.iouThrs = np.array(IOUS)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    order = np.argsort(np.argsort(truth.category_ids))  # the library sorts categories by id
    return PrecisionRecall(
        np.asarray(evaluation.params.recThrs), np.where(precision < 0, np.nan, precision)[:, :, order]
    )


def _silent(*_: object) -> None:
    """The library prints its progress unless it is given something else to call."""
