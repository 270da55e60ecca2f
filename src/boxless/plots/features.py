"""Maps of features, for the eye: how strongly each place answers, level by level, and which places are alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.plots.style import HEAT, note, rows_under, show_image, styled

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@styled()
def level_maps(images: Sequence[Pixels], maps: Sequence[Mapping[str, Floats]]) -> Figure:
    """A column for each image (H, W, 3): itself, and under it its maps (h, w) of all levels."""
    names = list(maps[0])
    figure, grid = rows_under(images, len(names))
    for column, (image, levels) in enumerate(zip(images, maps, strict=True)):
        for axes, values in zip(grid[1:, column], levels.values(), strict=True):
            _over(axes, image, values, cmap=HEAT)
    for axes, name in zip(grid[1:, 0], names, strict=True):
        axes.set_title(f"{name}, {images[0].shape[1] / maps[0][name].shape[1]:g} px a cell")
    note(figure, "length of each cell's feature vector; yellow: the longest of its map")
    return figure


def pca_colours(maps: Sequence[Floats], kept: float = 0.98) -> list[Floats]:
    """Maps of vectors (h, w, C) as maps of colours (h, w, 3), 0..1: alike vectors have alike colours.

    Red, green and blue are the first three principal components of all cells of all maps together, each stretched over
    its middle `kept` share. A component's sign is chosen so that its skew is not negative: then the colours depend on
    distances between vectors alone, not on which way the feature space is turned.
    """
    cells = np.concatenate([each.reshape(-1, each.shape[-1]) for each in maps]).astype(np.float64)
    centred = cells - cells.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    scores = centred @ vectors[:, ::-1][:, :3]
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    scores *= np.where((scores**3).sum(0) < 0, -1, 1)
    low, high = np.quantile(scores, [(1 - kept) / 2, (1 + kept) / 2], axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1).astype(np.float32)
    ends = np.cumsum([each.shape[0] * each.shape[1] for each in maps])[:-1]
    return [part.reshape(*each.shape[:2], 3) for part, each in zip(np.split(colours, ends), maps, strict=True)]


@styled()
def pca_panels(images: Sequence[Pixels], maps: Mapping[str, Sequence[Floats]]) -> Figure:
    """A column for each image, a row for each of the weights: their maps (h, w, C) of the images in PCA colours."""
    figure, grid = rows_under(images, len(maps))
    for axes_of_row, (name, own) in zip(grid[1:], maps.items(), strict=True):
        axes_of_row[0].set_title(name)
        for axes, image, colours in zip(axes_of_row, images, pca_colours(own), strict=True):
            _over(axes, image, colours)
    note(figure, "alike colours in a row: alike features")
    return figure


@styled()
def attention_panels(images: Sequence[Pixels], maps: Mapping[str, Sequence[Floats]]) -> Figure:
    """A column for each image, a row for each of the weights: how strongly each place answers (h, w), over the image.

    Each map is stretched from its lowest to its highest value; weak places show the image.
    """
    figure, grid = rows_under(images, len(maps))
    for axes_of_row, (name, own) in zip(grid[1:], maps.items(), strict=True):
        axes_of_row[0].set_title(name)
        for axes, image, values in zip(axes_of_row, images, own, strict=True):
            show_image(axes, np.repeat(image.mean(2, keepdims=True) * 0.8, 3, 2).astype(np.uint8))
            strength = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
            _over(axes, image, strength, cmap=HEAT, alpha=0.15 + 0.65 * strength, interpolation="bilinear")
    note(figure, "length of each cell's feature vector; yellow: the longest of its map")
    return figure


def _over(axes: Axes, image: Pixels, values: Floats, **look: Any) -> None:
    """Show a map so that it covers the image."""
    height, width = image.shape[:2]
    axes.imshow(values, **{"extent": (0, width, height, 0), "interpolation": "nearest", **look})
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_anchor("N")
