"""Mean and standard deviation of an image set's colours, with which a trunk normalises."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from boxless.data.images import BadImage, decode
from boxless.data.index import ImageIndex
from boxless.parallel import available_cores

_TOGETHER = 1024
"""Images handed to the threads at a time."""


def colour_statistics(
    index: ImageIndex, workers: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[str, str]]]:
    """Mean and standard deviation of all pixels, every image with the same weight whatever its size.

    Views are of one size, so this is how often training meets a colour. The number of threads changes no digit.

    Args:
        index: the images.
        workers: threads that decode; by default one per core.

    Returns:
        Mean and standard deviation (3,) of RGB in 0..1, NaN without a readable image, and the images that could not be
        read: (path, reason).
    """
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    skipped = []
    for moments in _moments(index, workers or available_cores()):
        if isinstance(moments, BadImage):
            skipped.append((moments.path, moments.reason))
            continue
        mean, std = moments
        count, total, squares = count + 1, total + mean, squares + mean**2 + std**2
    if not count:
        return np.full(3, np.nan), np.full(3, np.nan), skipped
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0)), skipped


def _moments(index: ImageIndex, workers: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]] | BadImage]:
    with ThreadPoolExecutor(workers) as threads:  # decoders let go of the interpreter
        for start in range(0, len(index), _TOGETHER):
            rows = range(start, min(start + _TOGETHER, len(index)))
            yield from threads.map(_of_image, (index.path(row) for row in rows))


def _of_image(path: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | BadImage:
    try:
        mean, std = cv2.meanStdDev(decode(path))
    except BadImage as error:
        return error
    return mean[:, 0] / 255, std[:, 0] / 255
