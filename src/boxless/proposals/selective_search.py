"""Selective search (Uijlings et al., IJCV 2013) by OpenCV contrib, with the settings and filters of SoCo.

SoCo used the Python package `selectivesearch`; OpenCV's C++ is several times faster and finds more (see
`benchmarks/selective_search.py`). Two differences remain: OpenCV merges regions that touch, the package regions whose
bounding boxes overlap; and a rectangle found twice counts once, as in the paper, where SoCo's code keeps duplicates.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from boxless.errors import UserError
from boxless.proposals.limits import Array, BoxLimits, keep_fitting

Colours = Literal["hsv", "lab", "rgb"]
_CONVERSIONS = {"hsv": cv2.COLOR_RGB2HSV, "lab": cv2.COLOR_RGB2Lab, "rgb": None}


@dataclass(frozen=True)
class SelectiveSearch:
    """Settings of selective search; the defaults are the preset `fast`.

    Attributes:
        scale: k of the graph segmentation (Felzenszwalb): larger means larger first regions.
        sigma: sigma of the blur before the segmentation, px of the image as segmented.
        min_size: least area of a first region, px^2 of the image as segmented.
        colours: colour spaces; each gives one hierarchy of regions, and the boxes of all are joined.
        max_side: px; images whose longer side is larger are shrunken to it first, None never. Time grows with pixels
            times regions, so None can take minutes and gigabytes on images of 10 megapixels.
        limits: on the boxes that are kept.
    """

    scale: float = 80.0  # SoCo's 500 on a 640 px image, shrunken to 256 px: 500 * (256 / 640)^2
    sigma: float = 0.8
    min_size: int = 20
    colours: tuple[Colours, ...] = ("hsv", "lab", "rgb")
    max_side: int | None = 256
    limits: BoxLimits = field(default_factory=BoxLimits)

    def __post_init__(self) -> None:
        if unknown := set(self.colours) - set(_CONVERSIONS) or not self.colours:
            raise UserError(f"colours={self.colours}: expected some of {', '.join(_CONVERSIONS)}, got {unknown}")
        for name in ("scale", "sigma", "min_size", "max_side"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"{name}={value}: expected a positive number")

    def propose(self, image: np.ndarray, key: str) -> tuple[Array, int]:
        """Return the boxes (N, 4) of an image and the fallback step, see `limits.keep_fitting`; `key` is not used."""
        height, width = image.shape[:2]
        return keep_fitting(regions(image, self), width, height, self.limits)


PRESETS = {
    "fast": SelectiveSearch(),
    # SoCo, appendix A: one strategy, no least side
    "paper": SelectiveSearch(500.0, 0.9, 10, ("hsv",), None, BoxLimits(min_side=0.0)),
    # hologerry/SoCo, the script that made the released boxes
    "official-code": SelectiveSearch(300.0, 0.9, 100, ("hsv",), None, BoxLimits()),
}


def selective_search(image: np.ndarray, settings: SelectiveSearch = PRESETS["fast"]) -> Array:
    """Return the boxes (N, 4) float32, source px xyxy, of an image (H, W, 3) uint8 RGB; never none, no duplicates."""
    return settings.propose(image, "")[0]


def regions(image: np.ndarray, settings: SelectiveSearch) -> Array:
    """Return the boxes (N, 4) of all regions of all hierarchies, before any limit: source px xyxy, sorted, unique.

    OpenCV ranks its boxes by the C library's random numbers. Sorting leaves a function of image and settings alone.
    """
    height, width = image.shape[:2]
    shrunken = _shrink(image, settings.max_side)
    found = _search(shrunken, settings).process()
    x, y, w, h = np.unique(found.reshape(-1, 4), axis=0).T
    to_source_x, to_source_y = width / shrunken.shape[1], height / shrunken.shape[0]
    corners = (x * to_source_x, y * to_source_y, (x + w) * to_source_x, (y + h) * to_source_y)
    return np.stack(corners, axis=1).astype(np.float32)


def _shrink(image: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    factor = max_side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    shrunken: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunken


def _search(image: np.ndarray, settings: SelectiveSearch) -> Any:
    if not hasattr(cv2, "ximgproc"):
        raise UserError(
            "this OpenCV has no ximgproc: pip uninstall opencv-python opencv-python-headless, "
            "then pip install --force-reinstall opencv-contrib-python-headless"
        )
    cv = cv2.ximgproc.segmentation
    search = cv.createSelectiveSearchSegmentation()
    for colours in settings.colours:
        conversion = _CONVERSIONS[colours]
        search.addImage(image if conversion is None else cv2.cvtColor(image, conversion))
    search.addGraphSegmentation(cv.createGraphSegmentation(settings.sigma, settings.scale, settings.min_size))
    # Never kept for the next image: the strategies cache histograms by a number that starts again with each search.
    search.addStrategy(
        cv.createSelectiveSearchSegmentationStrategyMultiple(
            cv.createSelectiveSearchSegmentationStrategyColor(),
            cv.createSelectiveSearchSegmentationStrategyFill(),
            cv.createSelectiveSearchSegmentationStrategySize(),
            cv.createSelectiveSearchSegmentationStrategyTexture(),
        )
    )
    return search
