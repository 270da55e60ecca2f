"""Masks in labels: what is wrong with one, and the box around it."""

from typing import Any

import numpy as np

from boxless.data.annotations.types import Mask, number_problem, rle_runs


def mask_problem(mask: Any, width: float, height: float) -> str:
    """Say why `mask` is neither polygons nor an RLE of an image's size, px; empty if it is one."""
    return _rle_problem(mask, width, height) if isinstance(mask, dict) else _polygon_problem(mask)


def mask_box(mask: Mask) -> list[float]:
    """The box around a mask without a problem, COCO's x, y, width, height in px; of an empty RLE zeros."""
    if not isinstance(mask, dict):
        points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in mask])
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    height = int(mask["size"][0])
    ends = np.cumsum(rle_runs(mask["counts"]))
    starts, lasts = ends[:-1:2], ends[1::2] - 1  # of the foreground, which goes down the columns
    starts, lasts = starts[lasts >= starts], lasts[lasts >= starts]
    if not len(starts):
        return [0.0, 0.0, 0.0, 0.0]
    several = starts // height < lasts // height  # reaches over columns: down to the bottom, and from the top again
    x1, x2 = int(starts[0] // height), int(lasts[-1] // height) + 1
    y1 = int(np.where(several, 0, starts % height).min())
    y2 = int(np.where(several, height - 1, lasts % height).max()) + 1
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]


def _polygon_problem(mask: Any) -> str:
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return f"mask is neither polygons nor RLE: {type(mask).__name__}"
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon with fewer than 3 points or an odd count: {len(polygon)} numbers"
        if message := number_problem(polygon, len(polygon)):
            return f"polygon {message}"
    return ""


def _rle_problem(mask: dict[str, Any], width: float, height: float) -> str:
    counts = mask.get("counts")
    if mask.get("size") != [int(height), int(width)]:
        return f"RLE size is not the image's [height, width]: {mask.get('size')!r:.40}"
    try:
        runs = rle_runs(counts) if isinstance(counts, list | str) else []
        whole = {int}.issuperset(map(type, runs))
        if whole and sum(runs) == width * height and min(runs) >= 0:
            return ""
    except (TypeError, ValueError):
        pass
    return "RLE counts do not add up to the image"
