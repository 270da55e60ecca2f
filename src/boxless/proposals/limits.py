"""Which boxes may serve as objects: SoCo's limits on shape and size, and what to do where they leave none."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxless.errors import UserError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class BoxLimits:
    """Limits on a box of w x h px in an image of W x H px, all inclusive (SoCo, section 3.1).

    Attributes:
        aspect: range of w / h.
        share: range of sqrt(w h) / sqrt(W H).
        min_side: least w and h, px; 32 in SoCo's code, absent from the paper. In images whose shorter side is under
            four times that it is a quarter of the shorter side, or 96 px images would keep next to nothing.
    """

    aspect: tuple[float, float] = (1 / 3, 3.0)
    share: tuple[float, float] = (0.3, 0.8)
    min_side: float = 32.0

    def __post_init__(self) -> None:
        for name, (low, high) in (("aspect", self.aspect), ("share", self.share)):
            if not 0 <= low <= high:
                raise UserError(f"limits.{name}={low, high}: expected two numbers, 0 <= lower <= upper")


def fits(boxes: Array, width: int, height: int, limits: BoxLimits) -> NDArray[np.bool_]:
    """Return (N,) whether each box (N, 4) of source px xyxy keeps all limits in an image of `width` x `height` px."""
    aspect, share, side = _tests(boxes, width, height, limits)
    return aspect & share & side


def keep_fitting(boxes: Array, width: int, height: int, limits: BoxLimits) -> tuple[Array, int]:
    """Return the boxes (N, 4) that keep the limits, never none, and how many steps back that took.

    Steps, as in SoCo's released boxes: 0 all limits; 1 without the share; 2 the least side only; 3 one box, the whole
    image.
    """
    aspect, share, side = _tests(boxes, width, height, limits)
    for step, kept in enumerate((aspect & share & side, aspect & side, side)):
        if kept.any():
            return boxes[kept], step
    return whole_image(width, height), 3


def whole_image(width: int, height: int) -> Array:
    """Return the image itself as a box, (1, 4)."""
    return np.array([[0, 0, width, height]], np.float32)


def _tests(boxes: Array, width: int, height: int, limits: BoxLimits) -> tuple[NDArray[np.bool_], ...]:
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    w, h = x2 - x1, y2 - y1
    share = np.sqrt(w * h) / np.sqrt(float(width) * height)
    min_side = min(limits.min_side, min(width, height) / 4)
    solid = (w > 0) & (h > 0)
    return (
        solid & (w >= limits.aspect[0] * h) & (w <= limits.aspect[1] * h),
        (share >= limits.share[0]) & (share <= limits.share[1]),
        solid & (w >= min_side) & (h >= min_side),
    )
