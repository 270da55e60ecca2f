"""The common part of the texts of exports: the facts of a run that its weights do not hold, and lines of Python.

Every text of a detector ends in a function `detect(path)`, which gives boxes in px of the image as it is, scores and
labels; `classes[label]` is a label's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from boxless.detectors.detector import DetectorConfig
from boxless.detectors.trunk import TrunkConfig

BACKGROUND = "background"


@dataclass(frozen=True)
class Exported:
    """An export, as its text needs to know it.

    Attributes:
        file: name of the file or folder, which the lines look for where they are run.
        trunk: its settings.
        detector: its settings; None for a pretrained trunk or a backbone.
        classes: names, without background.
        keypoints: number of keypoints of an object.
        sizes: shorter and longest side of images at test, px.
        frozen: stages of the body that did not train, from the stem on.
    """

    file: str
    trunk: TrunkConfig
    detector: DetectorConfig | None = None
    classes: tuple[str, ...] = ()
    keypoints: int = 0
    sizes: tuple[int, int] = (800, 1333)
    frozen: int = 0

    @property
    def pixels(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of colours in 0..255."""
        return [round(255 * value, 4) for value in self.trunk.mean], [round(255 * v, 4) for v in self.trunk.std]


def names(classes: Sequence[str], background: bool) -> str:
    """The line that names the classes in the order of the labels."""
    return f"classes = {[*([BACKGROUND] if background else []), *classes]!r}"


OPENED = '    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")'
"""Line that reads an image as boxless does."""


def resized(sizes: tuple[int, int]) -> list[str]:
    """Lines that make `small` of `image`, as boxless does: Pillow's bilinear filter, which is antialiased."""
    return [
        f"    scale = min({sizes[0]} / min(image.size), {sizes[1]} / max(image.size))  # shorter and longest side, px",
        "    size = [max(1, round(side * scale)) for side in image.size]",
        "    small = image.resize(size, Image.Resampling.BILINEAR)",
    ]
