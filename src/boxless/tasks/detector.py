"""A fine-tuned detector for programs: images in whatever form go in, objects come out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import PIL.Image
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.detection import DetectionSample
from boxless.data.images import BadImage, decode, eight_bit
from boxless.detectors.detector import keep_above
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections
from boxless.interop.hub import fetch, is_address
from boxless.plots.overlay import overlay
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import detect, load_detector, skeleton_of, source_sample
from boxless.tasks.predict import as_coco, check_score

Image = str | Path | PIL.Image.Image | NDArray[Any] | Tensor
"""A file; an image of Pillow, as it is stored; (H, W, 3) uint8 RGB or (H, W) uint8 grey; or a tensor (3, H, W), uint8
or float in 0..1."""


class Object(NamedTuple):
    """One object: the name of its class, its score, 0..1, and its box (4,), xyxy px."""

    label: str
    score: float
    box: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects in one image; iteration yields each as an `Object`.

    Attributes:
        image: the image, as it was given.
    """

    image: Image
    _found: Detections
    _names: tuple[str, ...]
    _skeleton: Skeleton

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) float32, xyxy, px of the image."""
        return self._found.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) float32, 0..1."""
        return self._found.scores

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) int64, numbers of the classes from 0."""
        return self._found.labels

    @property
    def labels(self) -> list[str]:
        """Names of the N classes."""
        return [self._names[number] for number in self.classes]

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """(N, H, W) bool, of a detector with masks."""
        if self._found.masks is None:
            return None
        if not len(self):
            return np.zeros((0, *pixels_of(self.image).shape[:2]), bool)
        return np.stack([coco_mask.decode(mask).astype(bool) for mask in self._found.masks])

    @property
    def keypoints(self) -> NDArray[np.float32] | None:
        """(N, K, 2) float32, px of the image, of a detector with keypoints."""
        return self._found.keypoints

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Object]:
        return map(Object, self.labels, self.scores.tolist(), self.boxes)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations with scores, as `boxless predict` writes them; the category of class k is k + 1."""
        return [{"image_id": image_id, **as_coco(self._found, row)} for row in range(len(self))]

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`, with the names under `class_name`.

        Raises:
            UserError: if supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("to_supervision: needs supervision; install it with pip install supervision") from None
        names = {"class_name": np.array(self.labels, dtype=str)}
        return supervision.Detections(self.boxes, self.masks, self.scores, self.classes, data=names)

    def plot(self) -> PIL.Image.Image:
        """The image with its objects drawn: boxes, masks, keypoints, names, and scores in percent."""
        return overlay(pixels_of(self.image), self._found, self._names, self._skeleton.edges)


@dataclass(frozen=True, eq=False)
class Detector:
    """A fine-tuned detector; `boxless.load` makes one.

    Attributes:
        module: the network, in eval mode.
        classes: names of the classes, in the order of their numbers.
        recipe: the recipe that it was fine-tuned by.
    """

    module: nn.Module
    classes: tuple[str, ...]
    recipe: FinetuneRecipe
    _skeleton: Skeleton

    @classmethod
    def load(cls, where: str | Path) -> "Detector":
        """The detector of a run; see `boxless.load`."""
        path = fetch(str(where)) if is_address(where) else Path(where)
        path = path.parent if path == Run(path.parent).weights else path
        module, classes, recipe = load_detector(path)
        if recipe.detector.targets == "classes":
            raise UserError(f"{where}: is FCN, which finds classes of pixels, not objects; use boxless predict")
        return cls(module, classes, recipe, skeleton_of(path))

    @overload
    def predict(self, images: Image, threshold: float = ...) -> Objects: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[Image], threshold: float = ...) -> list[Objects]: ...

    def predict(self, images: Image | Sequence[Image], threshold: float = 0.5) -> Objects | list[Objects]:
        """The objects in an image, or in each of several, as `boxless predict` finds them.

        Args:
            images: a file; an image of Pillow, as it is stored; an array, (H, W, 3) uint8 RGB or (H, W) uint8 grey; a
                tensor (3, H, W), uint8 or float in 0..1; or a list of these.
            threshold: least score of an object, 0..1.

        Returns:
            The objects; of a list, one `Objects` for each image.

        Raises:
            UserError: if an image cannot be read or is in another form, naming it.
        """
        check_score(threshold, "threshold")
        several = isinstance(images, list | tuple)
        given: Sequence[Image] = images if several else [images]  # type: ignore[assignment, list-item]
        keep_above(self.module, threshold)
        dataset = _GivenImages(given, self.recipe)
        recipe = replace(self.recipe, workers=0)  # processes would import the caller's script again
        found = [
            Objects(image, detections, self.classes, self._skeleton)
            for image, (_, detections) in zip(given, detect(self.module, dataset, recipe), strict=True)
        ]
        return found if several else found[0]


class _GivenImages(Dataset[DetectionSample]):
    def __init__(self, images: Sequence[Image], recipe: FinetuneRecipe) -> None:
        self.images, self.recipe = images, recipe

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> DetectionSample:
        return source_sample(pixels_of(self.images[row]), row, self.recipe.min_size[-1:], self.recipe.max_size)


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """An image in any of its forms as (H, W, 3) uint8 RGB.

    Raises:
        UserError: if it is in another form, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        try:
            return decode(image)
        except BadImage as error:
            raise UserError(str(error)) from error
    if isinstance(image, PIL.Image.Image):
        return np.array(eight_bit(image))
    if isinstance(image, Tensor):
        if image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
            image = (image * 255).round().byte()
        pixels = np.moveaxis(image.detach().cpu().numpy(), 0, -1)
    else:
        pixels = np.asarray(image)
        pixels = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"image: {type(image).__name__} of shape {tuple(np.shape(image))} and type {pixels.dtype}; expected a "
            "file, a Pillow image, (H, W, 3) or (H, W) uint8, or a tensor (3, H, W), uint8 or float in 0..1"
        )
    return np.ascontiguousarray(pixels)
