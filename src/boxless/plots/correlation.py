"""The cross-correlation of two views' embeddings, which Barlow Twins wants to be the identity."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from boxless.plots.style import DIVERGING, MUTED, blank, colour, note, styled

SHOWN = 64
"""Dimensions drawn: a cell of more would be smaller than a point of the screen."""


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
