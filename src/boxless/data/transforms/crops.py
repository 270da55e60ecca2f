"""Cutting views out of one source image, in the data workers: decoded once, cropped and resized to uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from boxless.data.transforms.color import Photometric

Window = tuple[float, float, float, float]
"""A part of an image, source px, xyxy."""


@dataclass(frozen=True)
class ViewSpec:
    """Specification of a view: its size, window and colours.

    Attributes:
        size: size of the square view, px.
        photometric: applied after cutting, drawn again for each view.
        scale: range of the crop's share of the source's area; None takes the whole image, squashed to a square.
        ratio: range of the crop's width over height, drawn log-uniformly.
        resize_of: number of an earlier view that this one is a smaller copy of, before flip and colour.
        least_side: draw a crop's width and height on their own, uniformly from this to the source's side less this, px
            (UP-DETR's patches); `scale` and `ratio` then do not count.
        min_boxes: boxes of the source that the crop should show; it is drawn again up to 5 times to find them.
    """

    size: int
    photometric: Photometric
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resize_of: int | None = None
    min_boxes: int = 0
    least_side: int | None = None


def draw_window(spec: ViewSpec, width: int, height: int, boxes: NDArray[np.float32], random: Generator) -> Window:
    """The part of a width x height source that a view shows, xyxy in source px.

    Random crops follow torchvision's RandomResizedCrop: 10 tries, then the largest centred window of an allowed ratio.
    With `spec.min_boxes`, a crop that shows fewer boxes (N, 4) is drawn again up to 5 times; from the second draw on
    one box is enough (SoCo's code). With `spec.least_side`, width, height and place are drawn uniformly, in whole px
    (UP-DETR's code); a source of less than twice that side gives windows of half its own.
    """
    if spec.least_side is not None:
        x1, x2 = _random_span(spec.least_side, width, random)
        y1, y2 = _random_span(spec.least_side, height, random)
        return x1, y1, x2, y2
    if spec.scale is None:
        return 0.0, 0.0, float(width), float(height)
    window = _random_window(spec, width, height, random)
    wanted = min(spec.min_boxes, len(boxes))
    for _ in range(5):
        if wanted == 0 or _shown(boxes, window) >= wanted:
            break
        window, wanted = _random_window(spec, width, height, random), 1
    return window


def least_scale(windows: Sequence[Window], sizes: Sequence[int]) -> float:
    """The smallest scale, 0..1, at which an image still has a pixel for each pixel of all its square views."""
    sides = [min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows]
    return min(1.0, max(size / side for size, side in zip(sizes, sides, strict=True)))


def on_grid(window: Window, step: int, width: int, height: int) -> Window:
    """The window whose edges are whole pixels of an image that is `step` times smaller.

    Args:
        window: xyxy, source px.
        step: source px per px of the small image.
        width: width of the small image, px; its last column may extend beyond the source's edge.
        height: height of the small image, px.

    Returns:
        xyxy in px of the small image, not empty.
    """
    x1, y1, x2, y2 = (round(edge / step) for edge in window)
    left, top = min(x1, width - 1), min(y1, height - 1)
    return float(left), float(top), float(min(max(x2, left + 1), width)), float(min(max(y2, top + 1), height))


def cut(image: NDArray[np.uint8], window: Window, size: int) -> NDArray[np.uint8]:
    """A window, in whole px, of an image (H, W, 3) as a (size, size, 3) image; bilinear and anti-aliased.

    PyTorch's resize differs from Pillow's by at most one level, in a quarter of the time.
    """
    x1, y1, x2, y2 = (int(edge) for edge in window)
    part = torch.from_numpy(image[y1:y2, x1:x2]).permute(2, 0, 1)[None]
    view = interpolate(part, (size, size), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = view[0].permute(1, 2, 0).numpy()
    return pixels


def extended(image: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """The part of an image (H, W, 3) from px (x, y) on; beyond the edges the image's last pixels go on."""
    rows, columns = image.shape[:2]
    # Wholly beyond an edge a part shows what it does where it touches the image. Of none, OpenCV would read elsewhere.
    x, y = min(max(x, 1 - width), columns - 1), min(max(y, 1 - height), rows - 1)
    top, bottom, left, right = max(0, -y), max(0, y + height - rows), max(0, -x), max(0, x + width - columns)
    part = image[max(y, 0) : y + height, max(x, 0) : x + width]
    if not (top or bottom or left or right):
        return part
    return np.asarray(cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REPLICATE), np.uint8)


def _random_window(spec: ViewSpec, width: int, height: int, random: Generator) -> Window:
    assert spec.scale is not None
    for _ in range(10):
        target = random.uniform(*spec.scale) * width * height
        ratio = math.exp(random.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
            return float(x), float(y), float(x + w), float(y + h)
    ratio = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    w, h = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    x, y = (width - w) // 2, (height - h) // 2
    return float(x), float(y), float(x + w), float(y + h)


def _random_span(least: int, side: int, random: Generator) -> tuple[float, float]:
    least = max(1, min(least, side // 2))
    length = int(random.integers(least, max(least, side - least) + 1))
    start = int(random.integers(0, side - length + 1))
    return float(start), float(start + length)


def _shown(boxes: NDArray[np.float32], window: Window) -> int:
    x1, y1, x2, y2 = window
    overlaps = (boxes[:, 0] < x2) & (boxes[:, 2] > x1) & (boxes[:, 1] < y2) & (boxes[:, 3] > y1)
    return int(overlaps.sum())
