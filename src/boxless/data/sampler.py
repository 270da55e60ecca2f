"""Repeat-factor sampling: images that show rare classes are seen more often (LVIS, arXiv:1908.03195)."""

import numpy as np
from numpy.typing import NDArray

from boxless.data.annotations.types import LabelledData


def repeat_factors(data: LabelledData, threshold: float) -> NDArray[np.float64]:
    """How often each image is seen in an epoch on average, (N,), each at least 1.

    r(c) = max(1, sqrt(threshold / f(c))), f(c) the share of images that show class c; r(image) = max over its classes.
    """
    shown = [np.unique(image.labels) for image in data.images]
    counts = np.bincount(np.concatenate([*shown, np.zeros(0, np.int64)]), minlength=len(data.classes))
    by_class = np.sqrt(threshold * len(data) / np.maximum(counts, 1)).clip(1)
    return np.array([by_class[labels].max(initial=1.0) for labels in shown])


def repeated_rows(factors: NDArray[np.float64], random: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """The rows of one epoch in random order, each as often as its factor says, and which time (from 0) it is seen.

    A factor of 2.3 is 3 with a chance of 0.3, else 2.
    """
    times = (np.floor(factors) + (random.random(len(factors)) < factors % 1)).astype(np.int64)
    rows = np.repeat(np.arange(len(factors)), times)
    which = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    order = random.permutation(len(rows))
    return rows[order], which[order]
