"""Class maps drawn over images, and as PNG files in Pascal VOC's colours."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from boxless.plots.overlay import draw_tag, tag_font
from boxless.plots.style import blank, show_image, styled

Pixels = npt.NDArray[np.uint8]

VOID = 255
SMALLEST = 0.005  # share of the image below which a region has no name: it would hide others


def palette() -> Pixels:
    """Pascal VOC's colours, (256, 3): the bits of a number, by threes, are the highest bits of red, green and blue."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def class_png(classes: Pixels) -> Image.Image:
    """A class map (H, W) as an image whose values are the classes and whose palette is VOC's."""
    image = Image.fromarray(classes)
    image.putpalette(palette().tobytes())
    return image


def class_overlay(image: Pixels, classes: Pixels, names: Sequence[str]) -> Image.Image:
    """An image (H, W, 3) uint8 RGB tinted by class (H, W), with the names of all but small regions.

    The background keeps its colours where there is such a class; void pixels are as VOC has them, nearly white.
    """
    tints, background = palette(), names[0] == "background"
    tinted = (0.5 * image + 0.5 * tints[classes]).astype(np.uint8)
    painted = np.where((classes == 0)[..., None], image, tinted) if background else tinted
    picture = Image.fromarray(painted)
    draw, font = ImageDraw.Draw(picture), tag_font(max(7, round(np.sqrt(classes.size) / 45)))
    for number in np.unique(classes).tolist():
        inside = (classes == number).astype(np.uint8)
        if number == VOID or (number == 0 and background) or inside.mean() < SMALLEST:
            continue
        depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        place = np.array([x, y, x, y], np.float32)
        draw_tag(draw, names[number], place, tuple(tints[number].tolist()), font, picture.size)
    return picture


@styled()
def class_pairs(
    images: Sequence[Pixels], truths: Sequence[Pixels], found: Sequence[Pixels], names: Sequence[str]
) -> Figure:
    """One row per image (H, W, 3): labels (H, W) on the left, predictions on the right. Made for a few rows."""
    shapes = [image.shape[0] / image.shape[1] for image in images]
    figure = blank(10, 0.5 + 4.9 * sum(shapes))
    grid = figure.subplots(len(images), 2, squeeze=False, height_ratios=shapes)
    for axes, image, *maps in zip(grid, images, truths, found, strict=True):
        for place, classes in zip(axes, maps, strict=True):
            show_image(place, np.asarray(class_overlay(image, classes, names)))
    grid[0, 0].set_title("labels")
    grid[0, 1].set_title("predictions")
    return figure
