"""What a method sees: the views cut from each source image and the same objects in all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from boxless.figures.style import blank, colour, draw_box, show_image, styled


@styled()
def show_views(
    images: Sequence[Sequence[npt.NDArray[np.uint8]]],
    boxes: Sequence[Sequence[npt.NDArray[Any]]],
    visible: Sequence[Sequence[npt.NDArray[np.bool_]]],
    titles: Sequence[str] = (),
) -> Figure:
    """Rows are source images, columns their views; object k has colour and number k in every view of its row.

    `images[row][view]`: (H, W, 3) uint8 RGB; `boxes[row][view]`: (K, 4), view px, xyxy, the same K objects across a
    row; `visible[row][view]`: (K,) bool, False where the view does not show the object, which is then not drawn.
    `titles`: one per column.
    """
    columns = max(len(row) for row in images)
    shapes = [min(1.2, max(image.shape[0] / image.shape[1] for image in row)) for row in images]
    figure = blank(3.3 * columns, 0.4 + 3.3 * sum(shapes))
    grid = figure.subplots(len(images), columns, squeeze=False, height_ratios=shapes)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row, row_boxes, row_visible in zip(grid, images, boxes, visible, strict=True):
        for axes, image, view_boxes, seen in zip(line, row, row_boxes, row_visible, strict=False):
            show_image(axes, image)
            for index in np.flatnonzero(seen):
                draw_box(axes, view_boxes[index], colour(int(index)), str(index + 1))
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title)
    return figure
