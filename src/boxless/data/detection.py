"""Labelled images as a detector takes them: resized, sometimes flipped or cropped, with boxes and masks that follow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.data.images import BadImage, check_size, decode
from boxless.data.transforms.crops import Window, extended
from boxless.geometry.affine import compose, crop_and_resize, invert, mirror, transform_points
from boxless.geometry.boxes import area, clip, transform_boxes

LEAST_VISIBLE = 0.25
"""Share of an object's box that a zoomed image must show; objects of which less is seen are left out."""


@dataclass(frozen=True)
class DetectionSample:
    """One image as the detector sees it.

    Attributes:
        image: (3, H, W) uint8.
        from_source: (2, 3), source px -> image px.
        target: torchvision's: boxes (N, 4) image px, labels (N,) from 1, masks (N, H, W) where wanted, and keypoints
            (N, K, 3) image px where the data set has any; for segmentation classes (H, W). Where objects are to be
            ignored, ignored (N,) bool; their label is -1.
        row: row of the data set.
        source_size: width and height, px.
        skipped: (path, reason) of an image that could not be read; the sample is then empty and grey.
    """

    image: Tensor
    from_source: Tensor
    target: dict[str, Tensor]
    row: int
    source_size: tuple[int, int]
    skipped: tuple[str, str] | None = None

    def pin_memory(self) -> "DetectionSample":
        """The same sample with its image in page-locked memory, for copies that do not wait."""
        return replace(self, image=self.image.pin_memory())


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, beside sizes and horizontal flips."""

    vertical_flip: bool = False
    """Flip every second image upside down too, for images without a top (microscopy, surfaces, aerial images)."""
    color: float = 0.0
    """Probability of brightness 0.875 to 1.125, contrast and saturation 0.5 to 1.5 (D-FINE: 0.5)."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the scale that an image is shown at: below 1 it is smaller, above 1 a part of it fills the frame."""
    until: float = 1.0
    """Share of the run after which images are flipped and resized only."""

    @property
    def closed(self) -> "AugmentConfig":
        """The augmentation of the last part of a run: flips only."""
        return AugmentConfig(self.vertical_flip)

    def __post_init__(self) -> None:
        if not 0 <= self.color <= 1:
            raise ValueError(f"color: expected 0 to 1, got {self.color}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom: expected two scales above 0, the smaller first, got {self.zoom}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until: expected 0 to 1, got {self.until}")


class DetectionDataset(Dataset[DetectionSample]):
    """Reads labelled images.

    Args:
        data: images and labels.
        min_sizes: shorter side, px; in training one of them is drawn for each image.
        max_size: longest side, px.
        training: draw flips and sizes from (seed, epoch, row); else the last size and no flip.
        masks: if true, rasterise the masks.
        seed: seed of the run.
        random_crop: show a part of every second training image; objects outside of it are left out.
        augment: augmentation of training images.
    """

    def __init__(
        self,
        data: LabelledData,
        min_sizes: Sequence[int],
        max_size: int,
        training: bool,
        masks: bool,
        seed: int = 0,
        random_crop: bool = False,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.data, self.min_sizes, self.max_size = data, tuple(min_sizes), max_size
        self.augment = augment if training else None
        self.training, self.masks, self.seed = training, masks, seed
        self.random_crop = training and random_crop

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int] | int) -> DetectionSample:
        epoch, row = (0, place) if isinstance(place, int) else place
        random = np.random.default_rng((self.seed, epoch, row, 1))
        labelled = self.data.images[row]
        skipped = None
        try:
            source = decode_labelled(labelled)
        except BadImage as error:
            skipped = (str(error.path), error.reason)
            source = np.full((labelled.height, labelled.width, 3), 128, np.uint8)
            labelled = _without_objects(labelled)
        flipped = self.training and random.random() < 0.5
        shorter = int(random.choice(self.min_sizes)) if self.training else self.min_sizes[-1]
        cropped = self.random_crop and random.random() < 0.5
        window = draw_window(source.shape[1], source.shape[0], random) if cropped else None
        longest, visible, upside_down, colors = self.max_size, 0.0, False, None
        if self.augment is not None:
            upside_down = self.augment.vertical_flip and random.random() < 0.5
            scale = random.uniform(*self.augment.zoom)
            if window is None and scale > 1:
                window, visible = zoom_window(source.shape[1], source.shape[0], scale, random), LEAST_VISIBLE
            shorter, longest = (max(1, round(side * min(scale, 1))) for side in (shorter, longest))
            colors = draw_colors(random) if random.random() < self.augment.color else None
        image, from_source = resize(source, shorter, longest, flipped, window, upside_down)
        image = image if colors is None else recolor(image, *colors)
        height, width = image.shape[-2:]
        target = self._target(labelled, from_source, width, height, (flipped, upside_down), window, visible)
        return DetectionSample(image, from_source, target, row, (source.shape[1], source.shape[0]), skipped)

    def _target(
        self,
        labelled: LabelledImage,
        from_source: Tensor,
        width: int,
        height: int,
        flips: tuple[bool, bool],
        window: Window | None,
        visible: float,
    ) -> dict[str, Tensor]:
        boxes = transform_boxes(from_source[None], torch.from_numpy(labelled.boxes)[None])[0]
        keep = ~labelled.crowd
        if window is not None:
            whole, boxes = area(boxes), clip(boxes, width, height)
            keep = keep & (area(boxes) > visible * whole).numpy()
        boxes = boxes[torch.from_numpy(keep)]
        target = {"boxes": boxes, "labels": torch.from_numpy(labelled.labels[keep]) + 1}
        if labelled.ignored is not None:
            target["ignored"] = torch.from_numpy(labelled.ignored[keep])
            target["labels"][target["ignored"]] = -1
        if self.data.skeleton.names:
            points = torch.from_numpy(self.data.keypoints_of(labelled)[keep])
            points = move_keypoints(from_source, points, self.data.skeleton.mirrored if flips[0] != flips[1] else None)
            target["keypoints"] = points if window is None else _within(points, width, height)
        if self.masks:
            masks = labelled.masks or (None,) * len(keep)  # an image may have boxes only where others have masks
            kept = [mask for mask, chosen in zip(masks, keep, strict=True) if chosen]
            shown = window or (0, 0, labelled.width, labelled.height)
            rasters = [
                _rasterise(mask, shown, (width, height))[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
                if mask
                else _filled(width, height, box)
                for mask, box in zip(kept, boxes, strict=True)
            ]
            stacked = np.stack(rasters) if rasters else np.zeros((0, height, width), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        return target


def draw_window(width: int, height: int, random: np.random.Generator) -> Window:
    """The part of a width x height px image that DETR and Sparse R-CNN show in place of the whole.

    In the image with a shorter side of 400, 500 or 600 px, its sides are 384 to 600 px, as far as the image reaches.
    """
    shorter = int(random.choice((400, 500, 600)))
    scale = shorter / min(width, height)
    full = (round(width * scale), round(height * scale))
    sides = [int(random.integers(min(384, side), min(600, side) + 1)) for side in full]
    left, top = (int(random.integers(whole - part + 1)) for whole, part in zip(full, sides, strict=True))
    resized = torch.tensor([[left, top, left + sides[0], top + sides[1]]], dtype=torch.float64)
    to_resized = crop_and_resize(torch.tensor([[0, 0, width, height]], dtype=torch.float64), *full)
    x1, y1, x2, y2 = clip(transform_boxes(invert(to_resized), resized[None])[0, 0], width, height).tolist()
    return x1, y1, x2, y2


def zoom_window(width: int, height: int, scale: float, random: np.random.Generator) -> Window:
    """A part of a width x height px image of 1 / `scale` of its sides, anywhere in it."""
    left, top = (random.uniform(0, side - side / scale) for side in (width, height))
    return left, top, left + width / scale, top + height / scale


def draw_colors(random: np.random.Generator) -> tuple[float, float, float]:
    """Factors of brightness, contrast and saturation in D-FINE's ranges."""
    return random.uniform(0.875, 1.125), random.uniform(0.5, 1.5), random.uniform(0.5, 1.5)


def recolor(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """An image (3, H, W) uint8 in other colours; factors of 1 leave it as it is."""
    image = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
    changed: Tensor = functional.adjust_saturation(image, saturation)
    return changed


def resize(
    source: NDArray[np.uint8],
    shorter: int,
    longest: int,
    flipped: bool = False,
    window: Window | None = None,
    upside_down: bool = False,
) -> tuple[Tensor, Tensor]:
    """An image (H, W, 3) with its shorter side at `shorter` px unless the longer would pass `longest` px.

    A `window` of it is resampled but once, where DETR's code resizes, crops and resizes again: to the same places.

    Returns:
        (3, h, w) uint8 and the map (2, 3), source px -> px.
    """
    x1, y1, x2, y2 = window or (0, 0, source.shape[1], source.shape[0])
    width, height = x2 - x1, y2 - y1
    scale = min(shorter / min(height, width), longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(source).resize(size, Image.Resampling.BILINEAR, window))
    from_source = crop_and_resize(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32), *size)
    if flipped:
        pixels = pixels[:, ::-1]
        from_source = compose(mirror(size[0], torch.tensor([True])), from_source)
    if upside_down:
        pixels = pixels[::-1]
        from_source = compose(torch.tensor([[[1.0, 0.0, 0.0], [0.0, -1.0, size[1]]]]), from_source)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1), from_source[0]


def move_keypoints(forward: Tensor, points: Tensor, mirrored: list[int] | None) -> Tensor:
    """Keypoints carried along by a map.

    Args:
        forward: (2, 3).
        points: (N, K, 3), as `keypoints.from_coco` has them.
        mirrored: order of keypoints in mirrored images, where a left hand looks like a right one.

    Returns:
        (N, K, 3); places of keypoints that are not labelled stay 0.
    """
    moved = torch.cat([transform_points(forward[None], points[None, ..., :2])[0], points[..., 2:]], -1)
    moved = torch.where(points[..., 2:] > 0, moved, 0.0)
    return moved if mirrored is None else moved[:, mirrored]


def decode_labelled(labelled: LabelledImage) -> NDArray[np.uint8]:
    """Return what `decode` does, as large as the labels say: files may be a pixel larger or smaller than that.

    COCO takes masks of two sizes, a pixel apart, for strangers.

    Raises:
        BadImage: as `decode` does, or the file has another size.
    """
    source = decode(labelled.path)
    size = (labelled.width, labelled.height)
    check_size(labelled.path, (source.shape[1], source.shape[0]), size)
    return extended(source, 0, 0, *size)


def _without_objects(labelled: LabelledImage) -> LabelledImage:
    none = np.zeros(0, bool)
    return replace(
        labelled,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=none,
        masks=None if labelled.masks is None else (),
        keypoints=None,
        ignored=None,
    )


def _within(points: Tensor, width: int, height: int) -> Tensor:
    """Keypoints (N, K, 3) of which those outside the image are not labelled."""
    inside = (points[..., :2] >= 0).all(-1) & (points[..., 0] <= width) & (points[..., 1] <= height)
    return torch.where(inside[..., None], points, 0.0)


def _rasterise(mask: object, window: Window, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A window of a COCO mask (polygons or run lengths) at the image's size, (h, w) of 0 and 1."""
    width, height = size
    if isinstance(mask, list):
        move = crop_and_resize(torch.tensor([window], dtype=torch.float64), width, height)
        polygons = [
            transform_points(move, torch.tensor(polygon, dtype=torch.float64).view(1, -1, 2)).flatten().tolist()
            for polygon in mask
        ]
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return np.asarray(coco_mask.decode(runs), np.uint8)
    assert isinstance(mask, dict)
    runs = coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
    full = np.asarray(coco_mask.decode(runs), np.uint8)
    return np.asarray(Image.fromarray(full).resize(size, Image.Resampling.NEAREST, window))


def _filled(width: int, height: int, box: Tensor) -> NDArray[np.uint8]:
    """The mask of an object that has only a box."""
    raster = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    raster[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
    return raster
