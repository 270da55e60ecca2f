"""Pictures of runs inside a page: made smaller until they fit."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from boxless.plots.style import read_captions

BUDGET = 3_500_000
"""Bytes of all pictures of a page, as base64."""
WIDTH = 1600
"""Width of a picture, px, if all fit."""


@dataclass(frozen=True)
class Embedded:
    """A picture that a page holds.

    Attributes:
        data: its data URI.
        width, height: px.
        caption: description of the content.
        run: whose it is.
    """

    data: str
    width: int
    height: int
    caption: str
    run: str


def embedded(folders: Sequence[tuple[str, Path]]) -> tuple[list[Embedded], list[str]]:
    """The pictures figures/*.png of named runs, and a sentence for each file that is no picture."""
    files = []
    for run, folder in folders:
        captions = read_captions(folder / "figures")
        for file in sorted((folder / "figures").glob("*.png")):
            files.append((run, file, captions.get(file.name, file.stem.replace("-", " ").replace("_", " "))))
    width = WIDTH
    while True:
        pictures: list[Embedded] = []
        gaps: list[str] = []
        for run, file, caption in files:
            try:
                pictures.append(Embedded(*_webp(file, width), caption, run))
            except (OSError, ValueError, Image.DecompressionBombError):
                gaps.append(f"figures/{file.name} cannot be read; it is left out.")
        size = sum(len(picture.data) for picture in pictures)
        if size <= BUDGET or width <= 200:
            return pictures, gaps
        width = max(200, int(width * min(0.9, 0.95 * (BUDGET / size) ** 0.5)))


def _webp(file: Path, width: int) -> tuple[str, int, int]:
    with Image.open(file) as picture:
        image = picture.convert("RGB")
    image.thumbnail((width, 2 * width))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}", image.width, image.height
