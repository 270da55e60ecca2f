"""Plots of what two views of an image have in common: correlation, correspondence and transport of their features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.plots.style import DIVERGING, HEAT, MUTED, blank, colour, draw_box, note, show_image, styled

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SHOWN = 64
"""Dimensions drawn: a cell of more would be smaller than a point of the screen."""
GAP = 0.08
"""Between the two views, as a share of the first one's width."""
RIGHT, WRONG = colour(0), colour(1)
LINES = 24
"""Drawn at most: more hide the views."""


def cross_correlation(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cross-correlation (D, D) of embeddings (N, D) of the same images, -1..1; 0 for constant dimensions.

    Barlow Twins, eq. 2.
    """

    def standard(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
        norms: npt.NDArray[np.float64] = np.linalg.norm(centred, axis=0)
        return np.asarray(centred / np.where(norms > 1e-12, norms, np.inf))

    return np.asarray(standard(first).T @ standard(second))


@styled()
def correlation_matrix(matrix: npt.NDArray[np.float64], images: int, what: str) -> Figure:
    """The matrix (D, D) as colours, its first dimensions where there are many, and how its two parts are distributed.

    `images`: it is over; few make large values by chance, about 1 / sqrt(images). `what`: the embeddings are, in words.
    """
    figure = blank(12, 5.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    shown = min(SHOWN, len(matrix))
    picture = left.imshow(matrix[:shown, :shown], cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=left, label="correlation", ticks=[-1, 0, 1])
    left.set_xlabel("dimension, second view")
    left.set_ylabel("dimension, first view")
    several = f"first {shown} of {len(matrix):,} dimensions" if shown < len(matrix) else f"{shown} dimensions"
    left.set_title(f"{what}, {several}", fontsize=12, color=MUTED)
    diagonal = np.diagonal(matrix)
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    bins = np.linspace(-1, 1, 41)
    for number, (values, name) in enumerate(((diagonal, "diagonal"), (others, "off the diagonal"))):
        shares = 100 * np.histogram(values, bins)[0] / max(1, len(values))
        mean = f"mean {values.mean():+.2f}" if number == 0 else f"mean size {np.abs(values).mean():.2f}"
        right.stairs(shares, bins, color=colour(number), fill=True, alpha=0.35)
        right.stairs(shares, bins, color=colour(number), linewidth=2, label=f"{name}, {mean}")
    right.set_xlabel("correlation")
    right.set_ylabel("share of entries (%)")
    right.grid(axis="y")
    right.set_ylim(0, right.get_ylim()[1] * 1.25)  # room for the legend
    right.legend(frameon=False, loc="upper left")
    by_chance = 1 / np.sqrt(max(1, images))
    note(figure, f"over {images} images; by chance alone an entry is about {by_chance:.2f} in size")
    return figure


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two views of an image, and where cells of the first one are in the second.

    Attributes:
        first: (H, W, 3) uint8, as the network sees it.
        second: the same size.
        places: (N, 2), px of the first view, xy: the cells that the second view shows too.
        truth: (N, 2), px of the second view, where they are.
        found: name of the weights -> (N, 2), px of the second view, the centre of the cell that is most alike.
        tolerance: px; a find no further off than this, in x and in y, is right.
    """

    first: Pixels
    second: Pixels
    places: Floats
    truth: Floats
    found: Mapping[str, Floats]
    tolerance: float

    def right(self, name: str) -> npt.NDArray[np.bool_]:
        """Which of the N cells the weights found, (N,)."""
        return np.asarray((np.abs(self.found[name] - self.truth) <= self.tolerance + 1e-9).all(1))


@styled()
def view_matches(pairs: Sequence[ViewPair]) -> Figure:
    """A column for each pair of views; above what is true, below what each of the weights found, right or wrong."""
    names = ["true", *pairs[0].found]
    figure = blank(min(16, 5.4 * len(pairs)), 0.8 + 2.8 * len(names))
    grid = figure.subplots(len(names), len(pairs), squeeze=False, gridspec_kw={"wspace": 0.12})
    for axes_of_pair, pair in zip(grid.T, pairs, strict=True):
        shown = np.unique(np.linspace(0, len(pair.places) - 1, min(LINES, len(pair.places))).round().astype(int))
        for axes, name in zip(axes_of_pair, names, strict=True):
            ends = pair.truth if name == "true" else pair.found[name]
            right = np.ones(len(ends), bool) if name == "true" else pair.right(name)
            _draw_lines(axes, pair, ends, right, shown)
            share = "" if name == "true" else f": {right.sum()} of {len(right)} found"
            axes.set_title(f"{name}{share}", fontsize=13)
    note(figure, "blue: true, or found in the right cell; orange: found elsewhere")
    return figure


def _draw_lines(
    axes: Axes, pair: ViewPair, ends: Floats, right: npt.NDArray[np.bool_], shown: npt.NDArray[np.int64]
) -> None:
    start = _side_by_side(axes, pair.first, pair.second)
    for row in sorted(shown.tolist(), key=lambda row: not right[row]):
        hue = RIGHT if right[row] else WRONG
        (x1, y1), (x2, y2) = pair.places[row], ends[row]
        axes.plot([x1, start + x2], [y1, y2], color="white", linewidth=2.6, alpha=0.7)
        axes.plot([x1, start + x2], [y1, y2], color=hue, linewidth=1.4, marker="o", markersize=4)
    if not len(shown):
        axes.annotate("the views share no cell", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)


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
        truth: the box (4,) of the second view that shows each of these cells, px, or None if none does.
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
    start = _side_by_side(axes, first, second)
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


def _side_by_side(axes: Axes, first: Pixels, second: Pixels) -> float:
    """Show two views beside each other; the x of the second one's left edge."""
    start = (1 + GAP) * float(first.shape[1])
    show_image(axes, first)
    axes.imshow(second, extent=(start, start + second.shape[1], second.shape[0], 0))
    axes.set(xlim=(0, start + second.shape[1]), ylim=(first.shape[0], 0))
    return start
