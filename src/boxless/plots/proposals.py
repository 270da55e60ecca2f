"""Plots of proposals: on their images, their numbers and sizes, and their recall (SoCo, figs. 2 and 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from boxless.plots.style import INK, MUTED, blank, colour, draw_box, show_image, styled

SHOWN = 12
"""Boxes drawn on an image: more hide it."""


@styled()
def proposals_on_images(
    images: Sequence[npt.NDArray[np.uint8]], boxes: Sequence[npt.NDArray[Any]], seed: int = 0
) -> Figure:
    """A few boxes of each image, drawn at random of all (N, 4), source px; images are (H, W, 3)."""
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure = blank(4.4 * columns, 0.6 + 3.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    random = np.random.default_rng(seed)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, own in zip(grid, images, boxes, strict=False):
        show_image(axes, image)
        chosen = random.permutation(len(own))[:SHOWN]
        for number, row in enumerate(chosen):
            draw_box(axes, own[row], colour(number))
        axes.set_title(f"{len(chosen)} of {len(own)}", fontsize=13, color=MUTED)
    return figure


@styled()
def proposal_statistics(counts: npt.NDArray[Any], sides: npt.NDArray[Any]) -> Figure:
    """Histograms of the number of boxes per image (N,) and of their sizes (T,), the roots of their areas in px."""
    figure = blank(11, 4.4)
    left, right = figure.subplots(1, 2)
    _histogram(left, counts, "boxes per image", "images")
    _histogram(right, sides, "size of a box, square root of its area (px)", "boxes")
    return figure


def _histogram(axes: Any, values: npt.NDArray[Any], name: str, counted: str) -> None:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    bins = np.linspace(low, max(high, low + 1), 1 + int(np.clip(np.sqrt(len(values)), 5, 30)))
    axes.hist(values, bins, color=colour(0))
    axes.set_xlabel(name)
    axes.set_ylabel(counted)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    if len(values):
        middle = float(np.median(values))
        axes.axvline(middle, color=INK, linestyle="--", linewidth=1.5)
        axes.set_title(
            f"median {middle:,.0f}, from {low:,.0f} to {high:,.0f}; n = {len(values):,}", fontsize=12, color=MUTED
        )


@styled()
def recall_curves(overlaps: Mapping[str, npt.NDArray[Any]], boxes_per_image: float) -> Figure:
    """Share of labelled objects that some box covers, over the IoU that is asked for.

    `overlaps`: a group of objects -> (N,), the IoU of each with the box that fits it best, 0 if there is none.
    """
    figure = blank(9.6, 5.4)
    axes = figure.add_subplot()
    ious = np.linspace(0.3, 1, 71)
    for number, (name, best) in enumerate(overlaps.items()):
        if not len(best):
            continue
        shares = [100 * float((best >= iou).mean()) for iou in ious]
        style: dict[str, Any] = {"linewidth": 4, "color": "black"} if number == 0 else {"color": colour(number - 1)}
        axes.plot(ious, shares, label=f"{name} ({len(best):,})", **style)
    axes.axvline(0.5, color=MUTED, linestyle="--", linewidth=1.5)
    axes.set_xlim(0.3, 1)
    axes.set_ylim(0, 100)
    axes.set_xticks([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("IoU asked for")
    axes.set_ylabel("objects covered (%)")
    axes.grid(axis="y")
    axes.legend(frameon=False, title="objects (how many)", alignment="left")
    axes.set_title(f"{boxes_per_image:.0f} boxes per image; dashed: IoU 0.5", fontsize=12, color=MUTED)
    return figure
