"""Maps of features, for the eye: how strongly each place answers, level by level, and which places are alike."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from boxless.figures.style import HEAT, columns_of, note, show_image, styled

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@styled()
def level_maps(images: Sequence[Pixels], maps: Sequence[Mapping[str, Floats]]) -> Figure:
    """A row for each image (H, W, 3): itself, then its map (h, w) of each level, over the whole image each."""
    names = list(maps[0])
    figure, grid = columns_of(images, 1 + len(names), 3.0)
    for axes, image, levels in zip(grid, images, maps, strict=True):
        show_image(axes[0], image)
        for place, values in zip(axes[1:], levels.values(), strict=True):
            height, width = image.shape[:2]
            place.imshow(values, cmap=HEAT, extent=(0, width, height, 0), interpolation="nearest")
            place.set_anchor("N")
    for place, name in zip(grid[0, 1:], names, strict=True):
        height, width = maps[0][name].shape
        place.set_title(f"{name}, {width} x {height}")
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
    """A row for each image, a column for each of the weights: their maps (h, w, C) of the images in PCA colours."""
    figure, grid = columns_of(images, 1 + len(maps))
    for axes, image in zip(grid[:, 0], images, strict=True):
        show_image(axes, image)
    for column, (name, own) in enumerate(maps.items(), start=1):
        grid[0, column].set_title(name)
        for axes, image, colours in zip(grid[:, column], images, pca_colours(own), strict=True):
            height, width = image.shape[:2]
            axes.imshow(colours, extent=(0, width, height, 0), interpolation="nearest")
            axes.set_anchor("N")
    note(figure, "alike colours within a column: alike features")
    return figure


@styled()
def attention_panels(images: Sequence[Pixels], maps: Mapping[str, Sequence[Floats]]) -> Figure:
    """A row for each image, a column for each of the weights: how strongly each place answers (h, w), over the image.

    Each map is stretched from its lowest to its highest value.
    """
    figure, grid = columns_of(images, 1 + len(maps))
    for axes, image in zip(grid[:, 0], images, strict=True):
        show_image(axes, image)
    for column, (name, own) in enumerate(maps.items(), start=1):
        grid[0, column].set_title(name)
        for axes, image, values in zip(grid[:, column], images, own, strict=True):
            show_image(axes, np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8))
            height, width = image.shape[:2]
            strength = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
            axes.imshow(strength, cmap=HEAT, alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear")
            axes.set(xlim=(0, width), ylim=(height, 0))
    note(figure, "length of each cell's feature vector; yellow: the longest of its map")
    return figure
