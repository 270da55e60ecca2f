"""Which cell of one view was found at which place of another (LC-loss, fig. 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.plots.style import MUTED, blank, colour, note, show_image, styled

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

GAP = 0.08
"""Between the two views, as a share of the first one's width."""
RIGHT, WRONG = colour(0), colour(1)
LINES = 24
"""Drawn at most: more hide the views."""


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
            _draw(axes, pair, ends, right, shown)
            share = "" if name == "true" else f": {right.sum()} of {len(right)} found"
            axes.set_title(f"{name}{share}", fontsize=13)
    note(figure, "blue: true, or found in the right cell; orange: found elsewhere")
    return figure


def _draw(axes: Axes, pair: ViewPair, ends: Floats, right: npt.NDArray[np.bool_], shown: npt.NDArray[np.int64]) -> None:
    height, width = pair.first.shape[:2]
    start = (1 + GAP) * width
    show_image(axes, pair.first)
    axes.imshow(pair.second, extent=(start, start + pair.second.shape[1], pair.second.shape[0], 0))
    axes.set(xlim=(0, start + pair.second.shape[1]), ylim=(height, 0))
    for row in sorted(shown.tolist(), key=lambda row: not right[row]):
        hue = RIGHT if right[row] else WRONG
        (x1, y1), (x2, y2) = pair.places[row], ends[row]
        axes.plot([x1, start + x2], [y1, y2], color="white", linewidth=2.6, alpha=0.7)
        axes.plot([x1, start + x2], [y1, y2], color=hue, linewidth=1.4, marker="o", markersize=4)
    if not len(shown):
        axes.annotate("the views share no cell", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
