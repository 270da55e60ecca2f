"""Detections of two programs in the same images, compared object by object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Found = Mapping[str, NDArray[Any]]
"""Detections in an image: boxes (N, 4), labels (N,), scores (N,) and whatever else there is for each object."""

LIMIT = 1e-3
"""Difference above which an export is wrong."""
SHARE = 0.99
"""Share of objects that must agree: where two overlap as much as NMS allows, rounding decides which one stays."""


def difference(found: Sequence[Found], expected: Sequence[Found]) -> float:
    """The largest difference among 99 in 100 objects, each compared with the one that is most like it.

    It is relative where a value (a coordinate in px) is above 1 and absolute below, and infinite where an object has no
    counterpart of its class. Objects whose score is at the edge of being kept may have none.
    """
    apart = np.concatenate([_one_way(*pair) for a, b in zip(found, expected, strict=True) for pair in ((a, b), (b, a))])
    if not len(apart):
        return 0.0
    return float(np.sort(apart)[-1 - int(len(apart) * (1 - SHARE))])


def _one_way(given: Found, other: Found) -> NDArray[np.float64]:
    """The difference of each object from its counterpart."""
    edge = min((each["scores"].min() for each in (given, other) if len(each["scores"])), default=0.0) + LIMIT
    # With the lowest score there may be more objects than are kept, and then any of them are.
    sure = len(given["scores"]) == len(other["scores"]) and (given["scores"] <= edge).sum() == 1
    rows = [row for row, score in enumerate(given["scores"]) if sure or score > edge]
    return np.array([_nearest(given, row, other) for row in rows], np.float64)


def _nearest(given: Found, row: int, other: Found) -> float:
    at = np.flatnonzero(other["labels"] == given["labels"][row])
    if not len(at):
        return float("inf")
    boxes = _apart(other["boxes"][at], given["boxes"][row]).max(1)
    apart = np.maximum(boxes, _apart(other["scores"][at], given["scores"][row]))
    best = at[apart.argmin()]
    more = [name for name in given if name not in ("boxes", "scores", "labels") and name in other]
    return max([float(apart.min()), *(float(_apart(other[name][best], given[name][row]).max()) for name in more)])


def _apart(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    size: NDArray[np.float64] = np.maximum(1, np.abs(other.astype(np.float64)))
    apart: NDArray[np.float64] = np.abs(one.astype(np.float64) - other) / size
    return apart
