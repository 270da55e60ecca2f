"""COCO instances (.json) to `LabelledData`; linear in the file and vectorised over boxes: 118,000 images are fine.

LVIS is of the same form, but for images named by `coco_url` and what it says of classes that are not there.
"""

import json
import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from boxless.data.annotations import tools
from boxless.data.annotations.ids import Ids, other_start
from boxless.data.annotations.keypoints import find_skeleton, from_coco
from boxless.data.annotations.locate import ImageFiles
from boxless.data.annotations.masks import mask_box, mask_problem
from boxless.data.annotations.types import (
    LOSS_LIMIT,
    PIXEL_LIMIT,
    SPLITS,
    LabelledData,
    LabelledImage,
    Mask,
    Problem,
    Role,
    fit_boxes,
    number_problem,
)
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError
from boxless.untrusted import inside, no_collection, parse_json

_SPELLINGS = {"train": "train(ing)?", "val": "val(id(ation)?)?", "test": "test(ing)?"}
_LOOKED_INTO = 100  # files of a folder; labelling tools write one for each image


def recognises(path: Path) -> bool:
    """Return whether a path is a .json file, or a folder with some that have COCO's list of images."""
    return path.suffix.lower() == ".json" if path.is_file() else any(map(_has_images, _jsons(path)))


def _has_images(file: Path) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"images"') >= 0
    except (OSError, ValueError):  # empty, or no file: its reader says so
        return True


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read a COCO instances file, or the one of a split; `images`: folder of the images, else looked for beside it.

    Classes are in the order of their category ids, or follow `classes`. Broken entries are left out and listed.

    Raises:
        UserError: no such split, the file is no COCO dict, or none of its images exist.
    """
    file = _file_of(path, split, role)
    with no_collection():
        return _Reader(file, load_dict(file, ("images",)), classes).read(images)


def _file_of(path: Path, split: str | None, role: Role) -> Path:
    if path.is_file():
        if split:
            raise UserError(f"{path}: a COCO file is one split; leave out ':{split}'")
        return path
    every = _jsons(path)
    files = [file for file in every if _has_images(file)] or every
    names = (split,) if split else SPLITS[role]
    others = () if split else SPLITS["val" if role == "train" else "train"]
    for name in names:
        found = _named(files, name)
        if len(found) > 1:
            raise UserError(f"{path}: several files for '{name}': {', '.join(f.name for f in found[:5])}; name one")
        if found and found == next(filter(None, (_named(files, other) for other in others)), None):
            raise UserError(f"{found[0]}: its name says training and validation; name the file of each")
        if found:
            return found[0]
    if len(files) == 1 and not split and not any(_named(files, name) for name in (*names, *others)):
        return files[0]
    have = ", ".join(file.name for file in files[:5])
    raise UserError(f"{path}: no COCO file for '{' or '.join(names)}'; it has: {have}; name one")


def _named(files: Sequence[Path], split: str) -> list[Path]:
    """Return the files that are named by a split, or lie in the folder of one."""
    word = _SPELLINGS.get(split, re.escape(split))  # no part of a word: trainval is not val, nor latest test
    pattern = re.compile(f"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)
    several = len({file.parent for file in files if _split_folder(file)}) > 1
    found = [file for file in files if pattern.search(f"{_split_folder(file) if several else ''} {file.stem}")]
    return [file for file in found if file.stem.startswith("instances")] or found  # beside captions, keypoints


def _jsons(folder: Path) -> list[Path]:
    """Return the .json files in a folder, in annotations/, or in the folders of its splits, as Roboflow has them."""
    below = [file for file in folder.glob("*/*.json") if _split_folder(file)]
    return sorted([*folder.glob("annotations/*.json"), *folder.glob("*.json"), *below])[:_LOOKED_INTO]


def _split_folder(file: Path) -> str:
    """The name of a file's folder if it is one of a split, else ""."""
    name = file.parent.name
    return name if any(re.fullmatch(word, name, re.IGNORECASE) for word in _SPELLINGS.values()) else ""


def load_dict(path: Path, lists: Sequence[str] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """Return the COCO dict of `path`, which has these lists; raises `UserError` naming line or key."""
    try:
        data = parse_json(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty file, expected COCO JSON") from error
        raise UserError(f"{path}: not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {str(error)[:80]}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: not a COCO dict but a JSON {type(data).__name__}; "
            f"{tools.of_json(data) or 'expected images, annotations, ...'}"
        )
    check_lists(path, data, lists)
    coco: dict[str, Any] = data
    return coco


def check_lists(path: Path, data: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuse a COCO dict without lists under these keys; raises `UserError` naming the key."""
    for key in keys:
        if not isinstance(data.get(key), list):
            fault = "lacks the key" if key not in data else "expected a list under the key"
            hint = tools.of_json(data)
            raise UserError(f"{path}: not a COCO dict: {fault} '{key}'{hint and f'; {hint}'}")


class _Reader:
    """One pass over categories, images and annotations that share ids and collect problems."""

    def __init__(self, path: Path, data: dict[str, Any], classes: Sequence[str] | None) -> None:
        self.path, self.data, self.wanted = path, data, classes
        self.problems: list[Problem] = []
        if "annotations" not in data:  # images without labels, as COCO's test set
            self.problem("file", "lacks the key 'annotations', so no image has objects")
            self.data = {"annotations": [], "categories": [], **data}
        check_lists(path, self.data, ("annotations", "categories"))
        self.category_of, self.image_of = (
            Ids(each.get("id") for each in self.data[key] if isinstance(each, dict)) for key in ("categories", "images")
        )
        self.unusable: dict[int | str, str] = {}  # image id -> why it is left out

    def read(self, images: Path | None) -> LabelledData:
        classes, category_ids, class_of = self.categories()
        self.skeleton, self.with_skeleton, broken = find_skeleton(self.data["categories"])
        for number, message in broken:
            self.problem(f"category {number}", message)
        rows, row_of = self.images(images)
        frequencies = self.frequencies(classes)
        found = tuple(
            replace(
                image,
                negative=self.looked_for(entry, "neg_category_ids", class_of),
                not_exhaustive=self.looked_for(entry, "not_exhaustive_category_ids", class_of),
            )
            for (entry, _), image in zip(rows, self.labelled(row_of, class_of, rows), strict=True)
        )
        problems = tuple(self.problems)
        return LabelledData(
            str(self.path), classes, category_ids, found, problems, self.skeleton, frequencies=frequencies
        )

    def problem(self, entry: str, message: str, lost: int = 0) -> None:
        self.problems.append(Problem(str(self.path), entry, message, lost))

    def categories(self) -> tuple[tuple[str, ...], tuple[int, ...], dict[int | str, int]]:
        """Return names, numbers, and the class index of every usable category id (-1: not among the wanted classes).

        The numbers are the ids, or 1..n if these are names.
        """
        listed = [entry if isinstance(entry, dict) else {} for entry in self.data["categories"]]
        ids = [self.category_of(entry.get("id")) for entry in listed]
        named = not any(isinstance(number, int) for number in ids)
        name_of: dict[int | str, str] = {}
        for n, (number, entry) in enumerate(zip(ids, listed, strict=True)):
            name = entry.get("name")
            if number == "" or (isinstance(number, str) and not named):
                self.problem(f"categories[{n}]", f"category without an integer id: {entry.get('id')!r:.40}")
            elif number in name_of:
                self.problem(f"category {number}", "duplicate category id")
            elif not isinstance(name, str) or not name.strip():
                self.problem(f"category {number}", "empty category name")
            else:
                if name in name_of.values():
                    self.problem(f"category {number}", f"duplicate category name, joined with the first: '{name}'")
                name_of[number] = name
        if not name_of and self.data["annotations"]:
            raise UserError(f"{self.path}: no usable entry under 'categories'; expected id and name of each class")
        numbers = {each: n if isinstance(each, str) else each for n, each in enumerate(name_of, 1)}
        self.data = self.data | {
            "categories": [{**entry, "id": numbers.get(each)} for each, entry in zip(ids, listed, strict=True)]
        }
        first_id = {
            name: number for number, name in sorted(((numbers[i], n) for i, n in name_of.items()), reverse=True)
        }
        classes = tuple(self.wanted) if self.wanted is not None else tuple(sorted(first_id, key=first_id.__getitem__))
        index = {name: k for k, name in enumerate(classes)}
        spare = max(numbers.values(), default=0)
        category_ids = []
        for name in classes:
            spare += name not in first_id
            category_ids.append(first_id.get(name, spare))
        self.numbers = numbers
        return classes, tuple(category_ids), {each: index.get(name, -1) for each, name in name_of.items()}

    def frequencies(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return LVIS's frequency group of each class; nothing if no category has one."""
        entries = [entry for entry in self.data["categories"] if type(entry.get("name")) is str]
        known = {entry["name"]: entry["frequency"] for entry in entries if entry.get("frequency") in ("r", "c", "f")}
        return tuple(known.get(name, "") for name in classes) if known else ()

    def looked_for(self, image: dict[str, Any], key: str, class_of: dict[int | str, int]) -> tuple[int, ...]:
        """Return the classes that LVIS lists under an image's key."""
        ids = image.get(key)
        known = ids if type(ids) is list else ()
        return tuple(class_of[k] for k in known if type(k) is int and class_of.get(k, -1) >= 0)

    def images(self, folder: Path | None) -> tuple[list[tuple[dict[str, Any], Path]], dict[int | str, int]]:
        """Return the usable image entries with their files, and the row of every id."""
        entries = self.image_entries()
        names = [image["file_name"] for image in entries.values()]
        files = ImageFiles(names, [folder] if folder else self.folders())
        rows: list[tuple[dict[str, Any], Path]] = []
        row_of: dict[int | str, int] = {}
        first: dict[Path, int | str] = {}
        for number, image in entries.items():
            file = files.find(image["file_name"])
            if file is None:
                self.unusable[number] = _why_missing(image["file_name"], files)
            elif file in first:
                row_of[number] = row_of[first[file]]
                self.problem(f"image {number}", f"its file is that of image {first[file]}, joined: {file.name}")
            elif (sized := self.with_size(number, image, file)) is not None:
                first[file], row_of[number] = number, len(rows)
                rows.append((sized, file))
        if not rows:
            looked = ", ".join(dict.fromkeys(map(str, files.folders[:4])))
            fix = f"; looked in {looked}: put the images there, or correct file_name" if entries else ""
            reason = next(iter(self.unusable.values()), "none is listed")
            raise UserError(f"{self.path}: no images left of {len(self.data['images'])}: {reason}{fix}")
        return rows, row_of

    def image_entries(self) -> dict[int | str, dict[str, Any]]:
        """Return the image entries that name a file, by their ids, without those that share an id."""
        entries: dict[int | str, dict[str, Any]] = {}
        for n, image in enumerate(map(_with_file_name, self.data["images"])):
            number = self.image_of(image.get("id")) if isinstance(image, dict) else ""
            name = image.get("file_name") if isinstance(image, dict) else None
            if number == "":
                self.problem(f"images[{n}]", "image without an id")
            elif not isinstance(name, str) or not name.strip("./\\") or "\0" in name:
                self.problem(f"image {number}", "image without a file_name")
            elif number not in entries:
                shown = number if type(image["id"]) is float else image["id"]
                entries[number] = {**image, "id": shown}
            elif name == entries[number]["file_name"]:
                self.problem(f"image {number}", "image entry is there twice")
            else:
                both = f"{entries[number]['file_name']} and {name}"
                self.unusable[number] = f"image id of several files, left out: {both:.200}"
        if self.data["images"] and not entries:
            last = self.problems[-1]
            raise UserError(f"{self.path}: no usable entry under 'images', e.g. {last.entry}: {last.message}")
        return {number: image for number, image in entries.items() if number not in self.unusable}

    def with_size(self, number: int | str, image: dict[str, Any], file: Path) -> dict[str, Any] | None:
        """Return the entry with width and height, of the file where it says none; None if that is unreadable."""
        width, height = (_whole(image.get(side)) for side in ("width", "height"))
        if min(width, height) > 0 and width * height <= PIXEL_LIMIT:
            return {**image, "width": width, "height": height}
        try:
            width, height = image_size(file)
        except BadImage as error:
            self.unusable[number] = f"unreadable image file: {error}"
            return None
        self.problem(f"image {number}", f"width or height is no size, taken from the file: {width} x {height}")
        return {**image, "width": width, "height": height}

    def folders(self) -> list[Path]:
        """Return the likely folders of the images, the file's own last, below which all of them are looked for."""
        here = self.path.parent
        split = self.path.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        near = [here, here.parent / "images" / split, here.parent / split, here.parent / "images", here.parent]
        near += [here / "images" / split, here / split, here / "images", here / "data", here.parent / "coco", here]
        return near

    def labelled(
        self, row_of: dict[int | str, int], class_of: dict[int | str, int], rows: list[tuple[dict[str, Any], Path]]
    ) -> list[LabelledImage]:
        """Return every row's image with its objects."""
        sizes = np.array([(image["width"], image["height"]) for image, _ in rows], dtype=np.float64)
        kept, row, label = self.placed(row_of, class_of, sizes)
        boxes = np.array([entry["bbox"] for entry in kept], dtype=np.float64).reshape(-1, 4)
        self.check_corners(boxes, sizes[row])
        boxes[:, 2:] += boxes[:, :2]  # coco xywh -> xyxy
        clipped, keep, box_problems = fit_boxes(boxes, sizes[row])
        for n, message in box_problems:
            self.problem(f"annotation {kept[n].get('id', '?')}", message, int(not keep[n]))
        order = np.flatnonzero(keep)
        order = order[np.argsort(row[order], kind="stable")]
        crowd = np.array([entry.get("iscrowd") in (1, True) for entry in kept], dtype=bool)
        masks = [self.mask(kept[n], sizes[row[n]]) for n in order]
        count = len(self.skeleton.names)
        points = np.array([self.keypoints(kept[n]) for n in order], np.float32).reshape(len(order), count, 3)
        extent = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
        areas = np.array([_area(kept[n].get("area"), extent[n]) for n in order], np.float32)
        ends = np.cumsum(np.bincount(row[order], minlength=len(rows))).tolist()
        found = []
        for (image, file), start, end in zip(rows, [0, *ends[:-1]], ends, strict=True):
            part, own = order[start:end], tuple(masks[start:end])
            found.append(
                LabelledImage(
                    file,
                    image["id"],
                    image["width"],
                    image["height"],
                    clipped[part],
                    label[part],
                    crowd[part],
                    own if any(mask is not None for mask in own) else None,
                    points[start:end] if count else None,
                    areas=areas[start:end],
                )
            )
        return found

    def placed(
        self, row_of: dict[int | str, int], class_of: dict[int | str, int], sizes: np.ndarray
    ) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """Return the annotations of wanted classes in usable images, all with a bbox, and their rows and labels."""
        kept, rows, labels = [], [], []
        unwanted: Counter[int | str] = Counter()
        lost: Counter[int | str] = Counter()
        images: set[int | str] = set()
        categories: set[int | str] = set()
        for n, entry in enumerate(self.data["annotations"]):
            if not isinstance(entry, dict):
                self.problem(f"annotations[{n}]", f"annotation is not a dict: {type(entry).__name__}", 1)
                continue
            image, category = self.image_of(entry.get("image_id")), self.category_of(entry.get("category_id"))
            images.add(image)
            categories.add(category)
            if image in self.unusable:
                lost[image] += 1
                continue
            row, label = row_of.get(image, -1), class_of.get(category)
            if row < 0 or label is None:
                key = "image_id" if row < 0 else "category_id"
                self.problem(_called(entry, n), f"unknown {key}: {entry.get(key)!r:.40}", 1)
            elif label < 0:
                unwanted[category] += 1
            elif message := self.boxed(entry, sizes[row]):
                self.problem(_called(entry, n), f"bbox: {message}", 1)
            else:
                kept.append(entry)
                rows.append(row)
                labels.append(label)
        for key, used, known in (
            ("image_id", images, {*row_of, *self.unusable}),
            ("category_id", categories, class_of),
        ):
            if hint := other_start(self.path, key, used, known, "images" if key == "image_id" else "categories"):
                raise UserError(hint)
        for number, message in self.unusable.items():
            self.problem(f"image {number}", message, lost[number])
        for number, count in unwanted.items():
            self.problem(f"category {number}", f"class is not among the given classes: {count} annotations left out")
        return kept, np.array(rows, dtype=np.int64), np.array(labels, dtype=np.int64)

    def boxed(self, entry: dict[str, Any], size: np.ndarray) -> str:
        """Say why an annotation has no box; one that has none gets that of its mask."""
        message = number_problem(entry.get("bbox"), 4)
        if not message and entry["bbox"][2] > 0 and entry["bbox"][3] > 0:
            return ""
        mask = entry.get("segmentation")
        if mask and not mask_problem(mask, *size):
            entry["bbox"] = mask_box(mask)
            return ""
        return message

    def check_corners(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Refuse boxes that are corners, x1 y1 x2 y2, where COCO's are x, y, width, height."""
        reach_out = np.any(boxes[:, :2] + boxes[:, 2:] > sizes + 1, axis=1)
        corners = np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & np.all(boxes[:, 2:] <= sizes + 1, axis=1)
        if corners.all() and reach_out.sum() > LOSS_LIMIT * len(boxes):
            raise UserError(
                f"{self.path}: {reach_out.sum()} of {len(boxes)} boxes reach out of their images and none would as "
                "x1, y1, x2, y2; write bbox as COCO has it: x, y, width, height"
            )

    def mask(self, entry: dict[str, Any], size: np.ndarray) -> Mask | None:
        """Return the entry's usable mask; a broken one costs the mask, not the box."""
        mask = entry.get("segmentation")
        if mask is None or mask == []:
            return None
        if message := mask_problem(mask, *size):
            self.problem(f"annotation {entry.get('id', '?')}", f"{message}; kept the box only")
            return None
        return {key: mask[key] for key in ("size", "counts")} if isinstance(mask, dict) else mask

    def keypoints(self, entry: dict[str, Any]) -> np.ndarray:
        """Return the entry's keypoints, (K, 3); none of them labelled if there are none, or broken ones."""
        values, count = entry.get("keypoints"), len(self.skeleton.names)
        if values and self.numbers[self.category_of(entry["category_id"])] in self.with_skeleton:
            message = number_problem(values, 3 * count)
            if not message and not {0, 1, 2}.issuperset(values[2::3]):
                message = "visibility other than 0, 1 or 2"
            if not message:
                return from_coco(values)
            self.problem(f"annotation {entry.get('id', '?')}", f"keypoints: {message}; left out")
        return np.zeros((count, 3), np.float32)


def _why_missing(name: str, files: ImageFiles) -> str:
    if not os.path.isabs(name) and inside(Path(), name) is None:
        return f"file_name leads out of the folder: {name:.200}"
    return f"missing image file: {files.expected(name):.200}"


def _with_file_name(image: Any) -> Any:
    """LVIS names an image by its address, whose end is folder and file: train2017/000000391895.jpg."""
    url = image.get("coco_url") if isinstance(image, dict) and not image.get("file_name") else None
    return {**image, "file_name": "/".join(url.split("/")[-2:])} if isinstance(url, str) and url else image


def _called(entry: dict[str, Any], place: int) -> str:
    return f"annotation {entry['id']}" if "id" in entry else f"annotations[{place}]"


def _whole(side: Any) -> int:
    """A side in px, which may be written as 640.0 or "640"; 0 if it is none."""
    number = Ids(())(side)
    return number if isinstance(number, int) else 0


def _area(value: Any, extent: float) -> float:
    """An annotation's area, px^2; NaN where it has none, or more than its box."""
    sound = type(value) in (int, float) and 0 < value <= 1.01 * extent + 1
    return float(value) if sound else math.nan
