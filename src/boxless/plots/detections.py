"""Labels and detections side by side, image by image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as coco_mask
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from boxless.data.annotations.read import LabelledImage
from boxless.evaluation.average_precision import Detections
from boxless.plots.style import blank, colour, draw_box, show_image, styled

TAG_SIDE = 0.07  # boxes narrower than this share of the image get no tag: it would hide them


@styled()
def detection_pairs(
    images: Sequence[npt.NDArray[np.uint8]],
    truths: Sequence[LabelledImage],
    detections: Sequence[Detections],
    classes: Sequence[str],
    score_threshold: float = 0.5,
) -> Figure:
    """One row per image: labels on the left, detections with `score >= score_threshold` on the right.

    Masks are shown on both sides where the detections have them.

    `images`: (H, W, 3) uint8 RGB, source px, as the boxes of `truths` and `detections`. A class has the same colour
    on both sides; dashed boxes are crowd regions; boxes too narrow for a tag have none. Made for a few rows.
    """
    shapes = [image.shape[0] / image.shape[1] for image in images]
    figure = blank(10, 0.5 + 4.9 * sum(shapes))
    grid = figure.subplots(len(images), 2, squeeze=False, height_ratios=shapes)
    for (left, right), image, truth, found in zip(grid, images, truths, detections, strict=True):
        show_image(left, image)
        show_image(right, image)
        names = [classes[label] for label in truth.labels]
        marked = None if found.masks is None else truth.masks  # beside plain boxes they would look like more
        _draw(left, image, truth.boxes, truth.labels, names, marked, truth.crowd)
        kept = np.flatnonzero(found.scores >= score_threshold)
        kept = kept[np.argsort(found.scores[kept], kind="stable")]  # the most confident is drawn last, on top
        tags = [f"{classes[found.labels[row]]} {100 * found.scores[row]:.0f}" for row in kept]
        masks = None if found.masks is None else [found.masks[row] for row in kept]
        _draw(right, image, found.boxes[kept], found.labels[kept], tags, masks, np.zeros(len(kept), bool))
    grid[0, 0].set_title("labels")
    grid[0, 1].set_title(f"detections, score {100 * score_threshold:.0f} and above")
    return figure


def _draw(
    axes: Axes,
    image: npt.NDArray[np.uint8],
    boxes: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    tags: Sequence[str],
    masks: Sequence[Any] | None,
    crowd: npt.NDArray[np.bool_],
) -> None:
    height, width = image.shape[:2]
    if masks is not None:
        _draw_masks(axes, masks, labels, height, width)
    for box, label, tag, is_crowd in zip(boxes, labels, tags, crowd, strict=True):
        wide = box[2] - box[0] >= TAG_SIDE * width
        draw_box(axes, box, colour(int(label)), tag if wide else "", dashed=bool(is_crowd))


def _draw_masks(axes: Axes, masks: Sequence[Any], labels: npt.NDArray[Any], height: int, width: int) -> None:
    """One half-transparent layer for all masks; where they overlap the later one shows."""
    layer = np.zeros((height, width, 4), np.float32)
    for mask, label in zip(masks, labels, strict=True):
        if mask:
            layer[_decode(mask, height, width)] = to_rgba(colour(int(label)), 0.4)
    axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")


def _decode(mask: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """COCO polygons or RLE as (H, W) bool."""
    return np.asarray(coco_mask.decode(coco_mask.segmToRle(mask, width, height)), dtype=bool)
