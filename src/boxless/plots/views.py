"""Plots of a method's views of each source image, with the same objects or places marked in all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.plots.style import blank, colour, draw_box, show_image, styled

Pixels = npt.NDArray[np.uint8]


@styled()
def show_views(
    images: Sequence[Sequence[Pixels]],
    boxes: Sequence[Sequence[npt.NDArray[Any]]],
    visible: Sequence[Sequence[npt.NDArray[np.bool_]]],
    titles: Sequence[str] = (),
    points: Sequence[Sequence[npt.NDArray[Any]]] = (),
    windows: Sequence[npt.NDArray[Any]] = (),
) -> Figure:
    """Rows are source images, columns their views; object k has colour and number k in every view of its row.

    `images[row][view]`: (H, W, 3) uint8 RGB; `boxes[row][view]`: (K, 4), view px, xyxy, the same K objects across a
    row; `visible[row][view]`: (K,) bool, False where the view does not show the object, which is then not drawn.
    `titles`: one per column. `points[row][view]`: (N, 2), view px, xy, the same N places across a row, NaN if the
    view does not show one. `windows[row]`: (V, 4), px of the row's first image, what the views 1 to V show of it.
    """
    columns = max(len(row) for row in images)
    shapes = [min(1.2, max(image.shape[0] / image.shape[1] for image in row)) for row in images]
    width = min(3.3, 16 / columns, 16 / sum(shapes))
    figure = blank(width * columns, 0.4 + width * sum(shapes))
    grid = figure.subplots(len(images), columns, squeeze=False, height_ratios=shapes)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (line, row, row_boxes, row_visible) in enumerate(zip(grid, images, boxes, visible, strict=True)):
        for view, (axes, image, view_boxes, seen) in enumerate(zip(line, row, row_boxes, row_visible, strict=False)):
            show_image(axes, image)
            for index in np.flatnonzero(seen):
                draw_box(axes, view_boxes[index], colour(int(index)), str(index + 1))
            if len(points):
                _draw_points(axes, points[number][view])
        if len(windows):
            _draw_windows(line[0], windows[number])
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title)
    return figure


def _draw_points(axes: Axes, places: npt.NDArray[Any]) -> None:
    for index, (x, y) in enumerate(places):
        if np.isnan(x):
            continue
        axes.plot(x, y, marker="o", markersize=15, color=colour(index), markeredgecolor="white", clip_on=False)
        axes.annotate(str(index + 1), (x, y), ha="center", va="center", fontsize=9, color="white", fontweight="bold")


def _draw_windows(axes: Axes, windows: npt.NDArray[Any]) -> None:
    """White outlines with black rims, named V1, V2 ... at another corner each, so that names do not meet."""
    corners = [(0, 1, "left", "top"), (2, 3, "right", "bottom"), (2, 1, "right", "top"), (0, 3, "left", "bottom")]
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    for number, window in enumerate(windows):
        x1, y1, x2, y2 = (float(side) for side in window)
        if (x2 - x1) * (y2 - y1) > 0.99 * right * bottom:
            continue  # the whole image: nothing to outline
        outline = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
        axes.plot(*outline, color="black", linewidth=3.5)
        axes.plot(*outline, color="white", linewidth=1.5, linestyle=("-", "--", ":", "-.")[number % 4])
        x, y, side, height = corners[number % 4]
        axes.annotate(
            f"V{number + 1}",
            (float(window[x]), float(window[y])),
            ha=side,
            va=height,
            fontsize=10,
            color="white",
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "black", "edgecolor": "none"},
        )
