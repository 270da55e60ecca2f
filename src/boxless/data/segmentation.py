"""Images with class maps as FCN takes them: scaled, mirrored and cropped at random in training, whole at test."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from boxless.data.annotations.class_maps import VOID, class_map
from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.data.detection import DetectionSample, resize
from boxless.data.images import BadImage, decode

Pixels = NDArray[np.uint8]

TRIES = 10  # at a crop in which no class has more than its share (mmseg, RandomCrop)


@dataclass(frozen=True)
class CropConfig:
    """Training crops of FCN; the defaults are OpenMMLab's for Pascal VOC."""

    size: int = 512
    """Side of the crop, px; smaller images are padded. Cityscapes has 769; MoCo's FCN-16s 513 and 769."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Range of the factor on an image's size before it is cropped."""
    max_share: float = 0.75
    """Share of a crop that no class should reach, in ten tries at the place; 1 takes the first place, as MoCo's paper
    knows no such rule."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue at random; MoCo's paper names no such change."""


class SegmentationDataset(Dataset[DetectionSample]):
    """Reads images and class maps; a sample's target has `classes`, uint8, 255 where a pixel has none.

    For training they are (size, size), drawn from (seed, epoch, row). Otherwise `classes` is (H, W) of the source, as
    scores are measured there.

    Args:
        data: as `read_segmentation` gives it.
        min_sizes: shorter side before the factor, px; in training one of them is drawn for each image, else it is the
            last. Without any, images keep their size, as in MoCo's paper.
        max_size: longest side before the factor, px, where there are shorter sides.
        crop: for training; None at test.
        mean: mean of the pixels, RGB in 0..1, which padding has.
        seed: seed of the run.
    """

    def __init__(
        self,
        data: LabelledData,
        min_sizes: Sequence[int],
        max_size: int,
        crop: CropConfig | None,
        mean: tuple[float, float, float] = (0, 0, 0),
        seed: int = 0,
    ) -> None:
        self.data, self.min_sizes, self.max_size = data, tuple(min_sizes), max_size
        self.crop, self.seed = crop, seed
        self.padding = np.rint(255 * np.array(mean)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int] | int) -> DetectionSample:
        epoch, row = (0, place) if isinstance(place, int) else place
        random = np.random.default_rng((self.seed, epoch, row, 1))
        source, classes, skipped = read_pair(self.data.images[row], len(self.data.classes))
        size = (source.shape[1], source.shape[0])
        if self.crop is None:
            image, from_source = resize(source, *sides(size, self.min_sizes[-1:], self.max_size))
            return DetectionSample(image, from_source, {"classes": torch.from_numpy(classes)}, row, size, skipped)
        factor, flipped = random.uniform(*self.crop.scales), random.random() < 0.5
        drawn = (int(random.choice(self.min_sizes)),) if self.min_sizes else ()
        image, from_source = resize(source, *sides(size, drawn, self.max_size, factor), flipped)
        resized = Image.fromarray(classes).resize((image.shape[2], image.shape[1]), Image.Resampling.NEAREST)
        classes = np.asarray(resized)[:, :: -1 if flipped else 1]
        image, classes, corner = self._cropped(image, classes, self.crop, random)
        from_source[:, 2] -= torch.tensor(corner)
        return DetectionSample(image, from_source, {"classes": torch.from_numpy(classes)}, row, size, skipped)

    def _cropped(
        self, image: Tensor, classes: Pixels, crop: CropConfig, random: np.random.Generator
    ) -> tuple[Tensor, Pixels, tuple[float, float]]:
        left, top = draw_place(classes, crop, random)
        part = np.s_[top : top + crop.size, left : left + crop.size]
        shown = image.permute(1, 2, 0).numpy()[part]
        shown = distorted(shown, random) if crop.distort else shown
        height, width = shown.shape[:2]
        padded = np.tile(self.padding, (crop.size, crop.size, 1))
        padded[:height, :width] = shown
        truth = np.full((crop.size, crop.size), VOID, np.uint8)
        truth[:height, :width] = classes[part]
        return torch.from_numpy(padded).permute(2, 0, 1), truth, (float(left), float(top))


def read_pair(labelled: LabelledImage, classes: int) -> tuple[Pixels, Pixels, tuple[str, str] | None]:
    """An image (H, W, 3) and its class map (H, W); or grey, void and (path, reason) if one of them is unusable."""
    try:
        source, numbers = decode(labelled.path), class_map(labelled, classes)
    except BadImage as error:
        skipped = (str(error.path), error.reason)
    else:
        if source.shape[:2] == numbers.shape:
            return source, numbers, None
        (height, width), (own_height, own_width) = numbers.shape, source.shape[:2]
        skipped = (str(labelled.path), f"is {own_width} x {own_height} px, its labels are {width} x {height}")
    shape = (labelled.height, labelled.width)
    return np.full((*shape, 3), 128, np.uint8), np.full(shape, VOID, np.uint8), skipped


def sides(size: tuple[int, int], shorter: Sequence[int], longest: int, factor: float = 1.0) -> tuple[int, int]:
    """The shorter side and the limit of the longer one, px, of an image of `size` px; without any, its own."""
    limits = (shorter[0], longest) if shorter else (min(size), max(size))
    return max(1, round(factor * limits[0])), max(1, round(factor * limits[1]))


def draw_place(classes: Pixels, crop: CropConfig, random: np.random.Generator) -> tuple[int, int]:
    """Left and top of a crop, px, in which there are two classes and none has `max_share`, if ten tries find one."""
    left = top = 0
    for _ in range(TRIES):
        top, left = (int(random.integers(max(length - crop.size, 0) + 1)) for length in classes.shape)
        part = classes[top : top + crop.size, left : left + crop.size]
        counts = np.bincount(part.ravel(), minlength=VOID + 1)[:VOID]
        if crop.max_share >= 1 or (np.count_nonzero(counts) > 1 and counts.max() < crop.max_share * counts.sum()):
            break
    return left, top


def distorted(image: Pixels, random: np.random.Generator) -> Pixels:
    """An image (H, W, 3) with other colours: SSD's changes with OpenMMLab's strengths, each with even odds.

    Brightness moves by up to 32 of 255, contrast and saturation change by a factor of 0.5 to 1.5, hue turns by up to 36
    degrees; contrast comes before or after the last two.
    """

    def even() -> bool:
        return bool(random.random() < 0.5)

    early = even()
    contrast = random.uniform(0.5, 1.5) if even() else 1.0
    if even():
        image = _linear(image, 1.0, random.uniform(-32, 32))
    if early:
        image = _linear(image, contrast)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if even():
        hsv[..., 1] = _linear(np.asarray(hsv[..., 1], np.uint8), random.uniform(0.5, 1.5))
    if even():
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(random.integers(-18, 19))) % 180  # OpenCV's half degrees
    image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    return image if early else _linear(image, contrast)


def _linear(values: Pixels, factor: float, shift: float = 0.0) -> Pixels:
    return np.asarray(np.clip(values.astype(np.float32) * factor + shift, 0, 255), np.uint8)
