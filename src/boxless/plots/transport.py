"""Self-EMD's transport plan, cell by cell: where the mass of one view's cell goes in the other (paper, fig. 5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.plots.style import HEAT, blank, colour, draw_box, note, show_image, styled

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

GAP = 0.08


@styled()
def transport_plan(
    first: Pixels, second: Pixels, plan: Floats, boxes: Floats, cells: Sequence[int], truth: Sequence[Floats | None]
) -> Figure:
    """A row for each of the cells: it in the first view, its mass as a heat map over the second, and as flows.

    Args:
        first: (H, W, 3) uint8.
        second: the same size.
        plan: (h, w, h, w), not negative; sums to 1. A heat map's values are those of its cell's part (h, w).
        boxes: (h * w, 4), what each cell of either view looks at, px; they touch, and may reach out of the view.
        cells: rows of the figure, cells of the first view counted row by row.
        truth: the box (4,) of the second view that shows each of these cells, px, or None where none does.
    """
    rows, columns = plan.shape[:2]
    figure = blank(14, 0.9 + 3.4 * len(cells))
    grid = figure.subplots(len(cells), 3, squeeze=False, width_ratios=[1, 1, 2 + GAP])
    extent = (boxes[0, 0], boxes[-1, 2], boxes[-1, 3], boxes[0, 1])
    top = max(float(plan[cell // columns, cell % columns].max()) for cell in cells)
    for (left, middle, right), cell, place in zip(grid, cells, truth, strict=True):
        own = plan[cell // columns, cell % columns]
        show_image(left, first)
        box = _inside(boxes[cell], first)
        draw_box(left, box, colour(2))
        left.set_title(f"weight {own.sum() * rows * columns:.2f}", fontsize=13)
        show_image(middle, second)
        height, width = second.shape[:2]
        look: Any = {"cmap": HEAT, "vmin": 0, "vmax": top, "alpha": 0.35 + 0.5 * own / top, "interpolation": "nearest"}
        middle.imshow(own, extent=extent, **look)
        middle.set(xlim=(0, width), ylim=(height, 0))
        if place is not None:
            draw_box(middle, place, colour(2), dashed=True)
        middle.set_title("where it goes" + ("" if place is not None else " (not in this view)"), fontsize=13)
        _flows(right, first, second, own, boxes, box)
        right.set_title("as flows", fontsize=13)
    note(
        figure,
        "green: the cell, and dashed where it truly is; yellow: most mass; weight 1: an average cell",
    )
    return figure


def _flows(axes: Axes, first: Pixels, second: Pixels, own: Floats, boxes: Floats, box: Floats) -> None:
    """Lines from the cell, whose box is given, to every cell that gets some of it, as thick as its share."""
    width = first.shape[1]
    start = (1 + GAP) * width
    show_image(axes, first)
    axes.imshow(second, extent=(start, start + second.shape[1], second.shape[0], 0))
    axes.set(xlim=(0, start + second.shape[1]), ylim=(first.shape[0], 0))
    draw_box(axes, box, colour(2))
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    shares = own / max(float(own.sum()), 1e-12)
    for cell in np.argsort(shares.ravel()).tolist():
        share = float(shares.ravel()[cell])
        if share < 0.01:
            continue
        other = _inside(boxes[cell], second)
        end = start + (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
        width_of_line = max(0.6, 14 * share)
        axes.plot([x, end[0]], [y, end[1]], color="white", linewidth=width_of_line + 1.6, alpha=0.6)
        axes.plot([x, end[0]], [y, end[1]], color=colour(1), linewidth=width_of_line)


def _inside(box: Floats, image: Pixels) -> Floats:
    """The part of a box that the image shows, (4,), px."""
    height, width = image.shape[:2]
    return np.clip(box, 0, [width, height, width, height])
