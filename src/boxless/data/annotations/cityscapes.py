"""Cityscapes (leftImg8bit/ and gtFine/) to `LabelledData`: the eight classes that have instances, with masks.

An instance is a number in *_gtFine_instanceIds.png: class * 1000 + count; without them the numbers are drawn from
*_gtFine_polygons.json as cityscapesscripts' json2instanceImg does. A number below 1000 is a group that nobody took
apart: it becomes `crowd`, as in Detectron2 (data/datasets/cityscapes.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from boxless.data.annotations.types import LabelledData, LabelledImage, Mask, Problem, Role, number_problem
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError
from boxless.untrusted import parse_json

CLASSES = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""Names and Cityscapes ids of the classes with instances that are evaluated."""

_OTHERS = {"caravan": 29, "trailer": 30}  # with instances, but outside the evaluation
_LAYOUT = "expected leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_instanceIds.png"


@dataclass(frozen=True)
class CityscapesFile:
    """An image and the start of its label files' names."""

    image: Path
    prefix: str

    @property
    def name(self) -> str:
        """City, sequence and frame: aachen_000000_000019."""
        return self.image.stem.removesuffix("_leftImg8bit")

    def label(self, kind: str) -> Path:
        """Its label file of a kind: instanceIds.png, labelIds.png, labelTrainIds.png, polygons.json, color.png."""
        return Path(f"{self.prefix}_{kind}")


def recognises(path: Path) -> bool:
    """Return whether a folder has Cityscapes' layout."""
    return (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir()


def cityscapes_files(root: Path, split: str) -> list[CityscapesFile]:
    """The images of a split (train, val, test), sorted by name, whether or not their labels exist.

    Raises:
        UserError: no such split, or no images in it.
    """
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (images, labels):
        if not folder.is_dir():
            have = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
            raise UserError(f"{folder}: no such folder; {_LAYOUT}; found: {', '.join(have) or 'nothing'}")
    files = sorted(images.glob("*/*_leftImg8bit.png"), key=lambda path: path.name)
    if not files:
        raise UserError(f"{images}: holds no images; {_LAYOUT}")
    names = [file.name.removesuffix("_leftImg8bit.png") for file in files]
    return [
        CityscapesFile(file, str(labels / file.parent.name / f"{name}_gtFine"))
        for file, name in zip(files, names, strict=True)
    ]


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read a split, by default that of the role, with its boxes and masks.

    `images` has no effect: labels and images lie in one root. Images whose labels are missing or broken are
    left out and listed.

    Raises:
        UserError: no such split, or none of its images has labels.
    """
    split = split or role
    files = cityscapes_files(path, split)
    kept = tuple(classes) if classes is not None else tuple(CLASSES)
    label_of = {CLASSES[name]: k for k, name in enumerate(kept) if name in CLASSES}
    with ThreadPoolExecutor(8) as pool:  # decoding a split of 2975 large PNGs is most of the time
        read_all = list(pool.map(lambda file: _read_image(file, label_of), files))
    labelled = tuple(image for image in read_all if isinstance(image, LabelledImage))
    problems = tuple(problem for problem in read_all if isinstance(problem, Problem))
    if not labelled:
        raise UserError(f"{path}: no image of {split} has labels; {_LAYOUT}; first: {problems[0]}")
    spare = max(CLASSES.values()) + 1
    ids = tuple(CLASSES.get(name, spare + k) for k, name in enumerate(kept))
    return LabelledData(f"{path}:{split}", kept, ids, labelled, problems)


def _read_image(file: CityscapesFile, label_of: dict[int, int]) -> LabelledImage | Problem:
    try:
        numbers = instance_ids(file)
    except (BadImage, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Problem(str(file.image), "labels", f"label file cannot be read: {error}")
    height, width = numbers.shape
    found = [(number, mask) for number, mask in _masks(numbers) if _class(number) in label_of]
    boxes = np.array([coco_mask.toBbox(mask) for _, mask in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # coco xywh -> xyxy
    masks: list[Mask] = [{**mask, "counts": _text(mask["counts"])} for _, mask in found]
    return LabelledImage(
        file.image,
        file.name,
        width,
        height,
        boxes,
        np.array([label_of[_class(number)] for number, _ in found], np.int64),
        np.array([number < 1000 for number, _ in found], bool),
        tuple(masks),
    )


def _class(number: int) -> int:
    return number // 1000 if number >= 1000 else number


def _text(counts: bytes | str) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def instance_ids(file: CityscapesFile) -> NDArray[np.int32]:
    """An image's instance numbers (H, W), read or drawn.

    Raises:
        BadImage: the image is none; OSError: there is no readable label file; ValueError, LookupError, TypeError,
            AttributeError: its content is broken.
    """
    size = image_size(file.image)
    path = file.label("instanceIds.png")
    if not path.is_file():
        return _drawn(parse_json(file.label("polygons.json").read_text()), size)
    with Image.open(path, formats=("PNG",)) as picture:
        if picture.mode not in ("L", "I", "I;16") or picture.size != size:
            raise ValueError(f"{path.name}: expected a grey PNG of {size[0]} x {size[1]} px")
        try:
            return np.asarray(picture, np.int32)
        except Exception as error:  # Pillow raises anything on broken files
            raise ValueError(f"{path.name}: cannot be decoded ({error})") from error


def _drawn(labels: dict[str, Any], size: tuple[int, int]) -> NDArray[np.int32]:
    """Instance numbers of polygons, later ones over earlier ones; classes without instances only cover."""
    if (labels["imgWidth"], labels["imgHeight"]) != size:
        raise ValueError(f"imgWidth and imgHeight are not the image's, {size[0]} x {size[1]} px")
    picture = Image.new("I", size, 0)
    draw = ImageDraw.Draw(picture)
    ids, counts = CLASSES | _OTHERS, dict.fromkeys(CLASSES | _OTHERS, 0)
    for entry in labels["objects"]:
        name = entry["label"]
        if entry.get("deleted") or name == "license plate":  # a plate's id is negative: it covers nothing
            continue
        single = name.removesuffix("group")
        number = ids.get(single, 0)
        if name in counts:
            number = number * 1000 + counts[name]
            counts[name] += 1
            if counts[name] > 1000:
                raise ValueError(f"more than 1000 objects of class {name}, which its numbers cannot tell apart")
        if message := next(filter(None, (number_problem(point, 2) for point in entry["polygon"])), ""):
            raise ValueError(f"polygon of {name}: {message}")
        draw.polygon([tuple(point) for point in entry["polygon"]], fill=number)
    return np.asarray(picture, np.int32)


def _masks(numbers: NDArray[np.int32]) -> list[tuple[int, dict[str, Any]]]:
    """The COCO RLE of every instance and group, from one pass over the runs of the whole image."""
    height, width = numbers.shape
    flat = numbers.ravel(order="F")  # an RLE goes down the columns
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    ends = np.append(starts[1:], flat.size)
    run_numbers = flat[starts]
    result = []
    order = np.argsort(run_numbers, kind="stable")
    known, first = np.unique(run_numbers[order], return_index=True)
    for number, mine in zip(known.tolist(), np.split(order, first[1:]), strict=True):
        if number < min(CLASSES.values()):
            continue
        edges = np.stack([starts[mine], ends[mine]], 1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size).tolist()
        rle = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
        result.append((number, dict(rle)))
    return result
