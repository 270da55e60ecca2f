"""Detections drawn into an image's own pixels, readable whatever its size."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as coco_mask
from PIL import Image, ImageColor, ImageDraw, ImageFont

from boxless.evaluation.average_precision import Detections
from boxless.plots.style import colour

Pixels = npt.NDArray[np.uint8]


def overlay(
    image: Pixels, found: Detections, classes: tuple[str, ...], edges: tuple[tuple[int, int], ...] = ()
) -> Image.Image:
    """Image (H, W, 3) uint8 RGB with boxes, masks, keypoints, names and scores in percent, the most confident on top.

    `found`: source px. `edges`: pairs of keypoints to connect. A class has one colour. Lines and letters grow with the
    image.
    """
    side = float(np.sqrt(image.shape[0] * image.shape[1]))
    line, rim, font = max(1, round(side / 300)), max(1, round(side / 600)), tag_font(max(7, round(side / 45)))
    order = np.argsort(found.scores, kind="stable").tolist()
    hues = [ImageColor.getrgb(colour(int(label)))[:3] for label in found.labels]
    painted = image.copy()
    for row in order if found.masks is not None else ():
        assert found.masks is not None
        _tint(painted, coco_mask.decode(found.masks[row]), found.boxes[row], hues[row])
    picture = Image.fromarray(painted)
    draw = ImageDraw.Draw(picture)
    for row in order:
        x1, y1, x2, y2 = found.boxes[row].tolist()
        x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)  # Pillow draws the last column and row too
        # The white rim keeps a dark line readable on a dark image.
        draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline="white", width=rim)
        draw.rectangle((x1, y1, x2, y2), outline=hues[row], width=line)
    for row in order if found.keypoints is not None else ():
        assert found.keypoints is not None
        _pose(draw, found.keypoints[row], edges, hues[row], line)
    for row in order:  # after all boxes: no line crosses a name
        text = f"{classes[found.labels[row]]} {100 * found.scores[row]:.0f}"
        draw_tag(draw, text, found.boxes[row], hues[row], font, picture.size)
    return picture


def _tint(image: Pixels, mask: Pixels, box: npt.NDArray[np.float32], hue: tuple[int, ...]) -> None:
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    part, inside = image[y1:y2, x1:x2], mask[y1:y2, x1:x2].astype(bool)
    part[inside] = (0.55 * part[inside] + 0.45 * np.array(hue)).astype(np.uint8)


def _pose(
    draw: ImageDraw.ImageDraw,
    places: npt.NDArray[np.float32],
    edges: tuple[tuple[int, int], ...],
    hue: tuple[int, ...],
    line: int,
) -> None:
    for first, second in edges:
        draw.line([*map(tuple, places[[first, second]].tolist())], fill=hue, width=line)
    for x, y in places.tolist():
        draw.circle((x, y), 2 * line, fill=hue, outline="white")


def draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: npt.NDArray[np.float32],
    hue: tuple[int, ...],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Name above the box, or inside it if there is no room above; always within the image's width."""
    ascent, descent = font.getmetrics()
    height, width = ascent + descent, font.getlength(text) + ascent / 2
    x = max(0.0, min(float(box[0]), size[0] - width))
    y = float(box[1]) - height if box[1] >= height else float(box[1])
    draw.rectangle((x, y, x + width, y + height), fill=hue)
    # ITU-R BT.601 luminance: the palette's light colours need dark letters
    dark = hue[0] * 0.299 + hue[1] * 0.587 + hue[2] * 0.114 > 140
    draw.text((x + ascent / 4, y), text, fill="black" if dark else "white", font=font)


@cache
def tag_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which ships with matplotlib: the figures' own font, with more scripts than Pillow's."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
