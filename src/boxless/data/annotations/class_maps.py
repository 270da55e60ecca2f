"""Data sets for semantic segmentation to `LabelledData`, and their class maps: Pascal VOC, Cityscapes, or any masks.

A class map is (H, W) uint8, 0-based numbers of the data set's classes, 255 where a pixel has none (void).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from boxless.data.annotations import cityscapes
from boxless.data.annotations.read import read_labels, split_off
from boxless.data.annotations.types import LabelledData, LabelledImage, Problem, Role
from boxless.data.annotations.voc import split_names
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError

VOID = 255
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CITYSCAPES_CLASSES = {  # the id of each in *_labelIds.png; its train id is its place here
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
    **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
LAYOUTS = (
    "a VOC root (JPEGImages/, SegmentationClass/, ImageSets/Segmentation/), Cityscapes (leftImg8bit/, gtFine/), "
    "or labels with masks such as COCO's"
)

_TRAIN_IDS = np.full(256, VOID, np.uint8)
_TRAIN_IDS[list(CITYSCAPES_CLASSES.values())] = np.arange(len(CITYSCAPES_CLASSES))


def read_segmentation(where: str | Path, role: Role = "train", classes: Sequence[str] | None = None) -> LabelledData:
    """Read labels for semantic segmentation; a suffix `:split` picks the split, else `role` does.

    VOC's splits are those in ImageSets/Segmentation; an image without a map in SegmentationClass has it in
    SegmentationClassAug (`:trainaug`). Cityscapes has 19 classes; others are void. From masks, class 0 is the
    background, later objects lie over earlier ones, crowds are void, and so are objects with a box alone, below others.

    Args:
        where: VOC root or split file, Cityscapes root, or anything that `read_labels` takes.
        role: which split is read where none is named.
        classes: those that were learned, which must be the data set's; from masks, other classes are left out.

    Raises:
        UserError: for none of these layouts, other classes, or no usable image.
    """
    path, split = split_off(where)
    if _is_split_file(path):
        return _checked(_voc(path.parents[2], path.stem), classes)
    if (path / "SegmentationClass").is_dir():
        return _checked(_voc(path, split or role), classes)
    if cityscapes.recognises(path):
        return _checked(_cityscapes(path, split or role), classes)
    data = read_labels(where, role, classes=None if classes is None else classes[1:])
    if not data.has_masks:
        raise UserError(
            f"{where}: detector.kind=fcn needs masks or class maps, these labels have boxes only; {LAYOUTS}"
        )
    if len(data.classes) >= VOID:
        raise UserError(f"{where}: {len(data.classes)} classes; expected at most {VOID - 1} beside the background")
    if classes is not None and classes[0] != "background":
        raise UserError(f"{where}: has a background and objects; the run's classes are {', '.join(classes[:5])}, ...")
    return replace(
        data,
        classes=("background", *data.classes),
        category_ids=(0, *data.category_ids),
        images=tuple(replace(image, labels=image.labels + 1) for image in data.images),
    )


def class_map(image: LabelledImage, classes: int) -> NDArray[np.uint8]:
    """The class map of an image that `read_segmentation` has read: (H, W) uint8, source px.

    Raises:
        BadImage: if its file cannot be read.
        UserError: for numbers that are no class's.
    """
    if image.class_map is None:
        return _painted(image)
    try:
        with Image.open(image.class_map) as file:
            values = np.asarray(file)
    except Exception as error:  # decoders raise anything on broken files
        raise BadImage(image.class_map, "its class map cannot be read") from error
    if image.class_map.name.endswith("_labelIds.png"):
        return np.asarray(_TRAIN_IDS[values])
    wrong = values[(values >= classes) & (values != VOID)]
    if len(wrong):
        raise UserError(f"{image.class_map}: has the value {wrong[0]}; expected 0 to {classes - 1}, or {VOID} for void")
    return values.astype(np.uint8)


def _painted(image: LabelledImage) -> NDArray[np.uint8]:
    painted = np.zeros((image.height, image.width), np.uint8)
    masks = image.masks or (None,) * len(image.boxes)
    for mask, (x1, y1, x2, y2) in zip(masks, image.boxes, strict=True):
        if not mask:  # below all masks, which say for sure what is there
            painted[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = VOID
    for mask, label, crowd in zip(masks, image.labels, image.crowd, strict=True):
        if mask:
            inside = coco_mask.decode(coco_mask.segmToRle(mask, image.width, image.height)).astype(bool)
            painted[inside] = VOID if crowd else label
    return painted


def _is_split_file(path: Path) -> bool:
    return path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Segmentation") and path.is_file()


def _voc(root: Path, split: str) -> LabelledData:
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        have = ", ".join(sorted(other.stem for other in file.parent.glob("*.txt"))) or "nothing"
        raise UserError(f"{file}: no such split; ImageSets/Segmentation has: {have}")
    pairs = []
    for name in split_names(file, root / "JPEGImages", ".jpg"):
        maps = [root / folder / f"{name}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
        pairs.append((name, root / "JPEGImages" / f"{name}.jpg", maps[0] if maps[0].is_file() else maps[1]))
    return _with_maps(str(file), VOC_CLASSES, pairs)


def _cityscapes(root: Path, split: str) -> LabelledData:
    pairs = []
    for file in cityscapes.cityscapes_files(root, split):
        ready = file.label("labelTrainIds.png")
        pairs.append((file.name, file.image, ready if ready.is_file() else file.label("labelIds.png")))
    return _with_maps(str(root / "gtFine" / split), tuple(CITYSCAPES_CLASSES), pairs)


def _with_maps(origin: str, classes: tuple[str, ...], pairs: Sequence[tuple[str, Path, Path]]) -> LabelledData:
    """Labels of (name, image, class map); pairs that do not fit together are left out and listed."""
    images, problems = [], []
    for name, path, map_path in pairs:
        try:
            size, map_size = image_size(path), image_size(map_path)
            with Image.open(map_path) as file:
                mode = file.mode
        except BadImage as error:
            problems.append(Problem(origin, name, f"unusable file: {error}"))
            continue
        if size != map_size:
            problems.append(Problem(origin, name, f"class map of another size: {map_size}, the image has {size}"))
        elif mode not in ("P", "L"):
            problems.append(
                Problem(origin, name, f"class map of mode {mode}: expected a grey or palette PNG of numbers")
            )
        else:
            none = np.zeros(0, np.int64)
            boxes = np.zeros((0, 4), np.float32)
            images.append(LabelledImage(path, name, *size, boxes, none, none.astype(bool), class_map=map_path))
    if not images:
        first = f"; first: {problems[0]}" if problems else ""
        raise UserError(f"{origin}: no image with a class map is left of {len(pairs)}{first}; expected {LAYOUTS}")
    return LabelledData(origin, classes, tuple(range(len(classes))), tuple(images), tuple(problems))


def _checked(data: LabelledData, classes: Sequence[str] | None) -> LabelledData:
    if classes is not None and tuple(classes) != data.classes:
        raise UserError(
            f"{data.origin}: its classes ({', '.join(data.classes[:3])}, ...) are not those that were learned "
            f"({', '.join(classes[:3])}, ...)"
        )
    return data
