"""Images to classify: folders of one class each, or the objects or the images of labelled detection data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from boxless.data.annotations.read import formats_in, read_labels
from boxless.data.annotations.types import LabelledData, Role, check_losses
from boxless.data.images import BadImage, check_size, open_image
from boxless.data.open import index_images
from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec, Window, cut, draw_window, extended, least_scale
from boxless.errors import UserError

MARGIN = 0.1
"""By how much the crop of an object is larger than the longer side of its box."""
CENTRE = 224 / 256
"""Share of the shorter side that the central crop of an image keeps: resize to 256, cut 224."""
SQUASHED_CENTRE = 224 / 257
"""Share of either side that the centre of a squashed image keeps: resize to 257 x 257, cut 224."""
CROP = ViewSpec(224, Photometric(), scale=(0.08, 1.0))
"""Random crops that classifiers learn from; mirrored half of the time, in their own colours."""
_NO_BOXES = np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class ClassifiedData:
    """N examples of C classes.

    Attributes:
        origin: the path or name given by the user.
        classes: their names.
        paths: the image of each example; examples of one image stand together.
        windows: part of the image that it shows: "centre", its central square; "whole", all of it, squashed to a
            square; "squashed centre", the middle of that square; or the boxes (N, 4) of objects, source px.
        present: (N, C) int8: 1 for a class that is shown, 0 for one that is not, -1 for one that is shown only by
            objects that detection ignores (difficult ones, crowds).
        sizes: sizes of the images that the boxes of objects are for, (N, 2), width and height, px; else None.
    """

    origin: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    windows: str | NDArray[np.float32]
    present: NDArray[np.int8]
    sizes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each example (N,), where each has one."""
        labels: NDArray[np.int64] = self.present.argmax(1)
        return labels

    def subset(self, rows: NDArray[np.int64]) -> "ClassifiedData":
        """The examples at `rows`, in their order."""
        windows = self.windows if isinstance(self.windows, str) else self.windows[rows]
        paths = tuple(self.paths[row] for row in rows.tolist())
        sizes = None if self.sizes is None else self.sizes[rows]
        return replace(self, paths=paths, windows=windows, present=self.present[rows], sizes=sizes)

    def window(self, row: int, width: int, height: int) -> Window:
        """Region of an image of width x height px that an example shows: xyxy, source px; may extend beyond it."""
        if not isinstance(self.windows, str):
            return object_window(self.windows[row].tolist(), width, height)
        if self.windows == "whole":
            return 0.0, 0.0, float(width), float(height)
        squashed = self.windows == "squashed centre"
        w, h = (SQUASHED_CENTRE * width, SQUASHED_CENTRE * height) if squashed else (CENTRE * min(width, height),) * 2
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

    def crop(self, row: int, width: int, height: int, random: Generator) -> Window:
        """A random part of an example's image, or of its object's window: xyxy, source px."""
        x, y, right, bottom = (
            (0.0, 0.0, width, height) if isinstance(self.windows, str) else self.window(row, width, height)
        )
        x1, y1, x2, y2 = draw_window(CROP, max(1, round(right - x)), max(1, round(bottom - y)), _NO_BOXES, random)
        return x + x1, y + y1, x + x2, y + y2


def object_window(box: Sequence[float], width: int, height: int) -> Window:
    """The square around a box with a margin, moved into the image where it fits: xyxy, source px."""
    x1, y1, x2, y2 = box
    side = (1 + MARGIN) * max(x2 - x1, y2 - y1)
    left, top = (_start(a + b, side, room) for a, b, room in ((x1, x2, width), (y1, y2, height)))
    return left, top, left + side, top + side


def _start(ends: float, side: float, room: int) -> float:
    start = (ends - side) / 2
    return start if side > room else min(max(start, 0.0), room - side)


def read_classified(where: str, role: Role, objects: bool, classes: Sequence[str] | None = None) -> ClassifiedData:
    """Read examples to classify.

    Args:
        where: a folder of class folders, or detection labels as `read_labels` takes them.
        role: which split of labels is meant where none is named.
        objects: if true, each object of detection labels is an example of its class; else each image is an example
            of all classes that it shows. An image of a class folder is an example of its class in both cases.
        classes: those that were learned; others are refused in folders and left out of labels.

    Raises:
        UserError: if there are no classes, or other ones than were learned.
    """
    if not Path(where).is_dir() or formats_in(Path(where)):
        labels = read_labels(where, role, classes=classes)
        check_losses(labels)
        data = _objects(where, labels) if objects else _images(where, labels)
    else:
        data = _folders(where, classes)
    if not len(data):
        raise UserError(f"{where}: no labelled object; expected class folders, or labels with objects in them")
    return data


def _folders(where: str, classes: Sequence[str] | None) -> ClassifiedData:
    index = index_images(where)
    keys = [index.key(row) for row in range(len(index))]
    stray = [key for key in keys if "/" not in key]
    if stray:
        raise UserError(
            f"{where}: {stray[0]} and {len(stray) - 1} more images lie in no class folder; expected one folder per "
            "class, or labels in COCO, VOC, YOLO or Cityscapes form"
        )
    found = sorted({key.partition("/")[0] for key in keys})
    names = tuple(classes if classes is not None else found)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise UserError(f"{where}: class folder {unknown[0]!r} is not among the classes learned: {', '.join(names)}")
    labels = np.array([names.index(key.partition("/")[0]) for key in keys])
    present = np.eye(len(names), dtype=np.int8)[labels]
    return ClassifiedData(where, names, tuple(index.path(row) for row in range(len(index))), "centre", present)


def _objects(where: str, labels: LabelledData) -> ClassifiedData:
    kept = [~image.crowd for image in labels.images]
    counts = [int(keep.sum()) for keep in kept]
    paths = [str(image.path) for image, count in zip(labels.images, counts, strict=True) for _ in range(count)]
    sizes = np.array([(image.width, image.height) for image in labels.images], np.int64).reshape(-1, 2)
    boxes = [image.boxes[keep] for image, keep in zip(labels.images, kept, strict=True)]
    shown = [image.labels[keep] for image, keep in zip(labels.images, kept, strict=True)]
    present = np.eye(len(labels.classes), dtype=np.int8)[np.concatenate([*shown, np.zeros(0, np.int64)])]
    windows = np.concatenate([*boxes, np.zeros((0, 4), np.float32)])
    return ClassifiedData(where, labels.classes, tuple(paths), windows, present, sizes.repeat(counts, 0))


def _images(where: str, labels: LabelledData) -> ClassifiedData:
    present = np.zeros((len(labels), len(labels.classes)), np.int8)
    for row, image in zip(present, labels.images, strict=True):
        row[image.labels[image.crowd]] = -1
        row[image.labels[~image.crowd]] = 1
    return ClassifiedData(where, labels.classes, tuple(str(image.path) for image in labels.images), "whole", present)


@dataclass(frozen=True)
class Examples:
    """The examples of one image.

    Attributes:
        views: (n, 3, size, size) uint8; none if the image could not be read.
        rows: rows of the examples in the data.
        skipped: (path, reason) of an image that could not be read.
    """

    views: Tensor
    rows: NDArray[np.int64]
    skipped: tuple[str, str] | None = None


class ExampleDataset(Dataset[Examples]):
    """Reads images, each once, and cuts their examples out as size x size px views.

    Args:
        data: the examples.
        size: size of the views, px.
        crops: seed of random crops, mirrored half of the time; None cuts what the data show.
    """

    def __init__(self, data: ClassifiedData, size: int, crops: int | None = None) -> None:
        self.data, self.size, self.crops = data, size, crops
        groups = groupby(range(len(data)), key=data.paths.__getitem__)
        self.groups = [(path, np.array(list(rows))) for path, rows in groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Examples:
        path, rows = self.groups[number]
        try:
            views = self._cut(path, rows)
        except BadImage as error:
            return Examples(torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8), rows[:0], (path, error.reason))
        return Examples(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2), rows)

    def _cut(self, path: str, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        source = open_image(path)
        width, height = source.size
        if self.data.sizes is not None:
            for labelled in self.data.sizes[rows].tolist():  # labels may list an image twice
                check_size(path, source.size, labelled)
        draws = [np.random.default_rng((self.crops or 0, row)) for row in rows.tolist()]
        if self.crops is None:
            windows = [self.data.window(row, width, height) for row in rows.tolist()]
        else:
            windows = [
                self.data.crop(row, width, height, random) for row, random in zip(rows.tolist(), draws, strict=True)
            ]
        image = source.pixels(least_scale(windows, [self.size] * len(windows)))
        step = round(width / image.shape[1])
        views = [_cut_padded(image, window, step, self.size) for window in windows]
        if self.crops is None:
            return views
        return [view[:, ::-1] if random.random() < 0.5 else view for view, random in zip(views, draws, strict=True)]


def _cut_padded(image: NDArray[np.uint8], window: Window, step: int, size: int) -> NDArray[np.uint8]:
    """A window, in px of a source that is `step` times as large; beyond the edges the image's last pixels go on."""
    x, y = round(window[0] / step), round(window[1] / step)
    width, height = (max(1, round((window[i + 2] - window[i]) / step)) for i in range(2))
    part = extended(image, x, y, width, height)
    return cut(part, (0, 0, part.shape[1], part.shape[0]), size)
