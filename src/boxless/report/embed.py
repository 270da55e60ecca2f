"""Pictures and galleries of detections inside the page, small enough for one file."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from boxless.plots.style import read_captions
from boxless.report.run_report import RunReport

BUDGET = 3_500_000
"""Bytes of all pictures of a page, as base64."""
WIDTH = 1600
"""Width of a picture, px, if all fit."""
IMAGES = 60
"""Images of the gallery of a page, of all data together."""


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        data: its data URI.
        width, height: px.
        caption: description of the content.
        run: the run's name.
    """

    data: str
    width: int
    height: int
    caption: str
    run: str


def embed_pictures(folders: Sequence[tuple[str, Path]]) -> tuple[list[Picture], list[str]]:
    """The pictures figures/*.png of named runs, and a sentence for each file that is no picture."""
    files = []
    for run, folder in folders:
        captions = read_captions(folder / "figures")
        for file in sorted((folder / "figures").glob("*.png")):
            files.append((run, file, captions.get(file.name, file.stem.replace("-", " ").replace("_", " "))))
    width = WIDTH
    while True:
        pictures: list[Picture] = []
        gaps: list[str] = []
        for run, file, caption in files:
            try:
                pictures.append(Picture(*_webp(file, width), caption, run))
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


def merge_galleries(reports: Sequence[RunReport]) -> list[dict[str, Any]]:
    """A gallery for each data set that runs were measured on: its images once, with each run's detections."""
    sets: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, report in enumerate(reports):
        for gallery in report.galleries:
            key = gallery["data"], tuple(gallery["classes"])
            known = sets.setdefault(
                key, {"data": gallery["data"], "classes": gallery["classes"], "runs": [], "images": {}}
            )
            if any(run["run"] == number for run in known["runs"]):
                continue  # a fine-tuning's own evaluation, and boxless evaluate on the same labels
            names = "images", "score", "counts"
            run = {"run": number, "name": report.name, **{name: gallery[name] for name in names}}
            known["runs"].append(run)
            for shown in gallery["shown"]:
                own = {name: value for name, value in shown.items() if name != "found"}
                same = shown["file"], shown["jpeg"], json.dumps(shown["truth"])  # labels may have been mended since
                known["images"].setdefault(same, {**own, "found": {}})["found"][number] = shown["found"]
    kept = max(1, IMAGES // max(1, len(sets)))
    return [{**each, "images": _some(list(each["images"].values()), kept)} for each in sets.values()]


def _some(images: list[Any], count: int) -> list[Any]:
    """At most `count` of them, from the first to the last."""
    return [images[row * len(images) // count] for row in range(count)] if len(images) > count else images
