"""COCO instances (.json) to `LabelledData`; linear in the file and vectorised over boxes: 118,000 images are fine.

LVIS is of the same form, but for images named by `coco_url` and what it says of classes that are not there.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxless.data.annotations.keypoints import find_skeleton, from_coco
from boxless.data.annotations.types import (
    PIXEL_LIMIT,
    SPLITS,
    LabelledData,
    LabelledImage,
    Mask,
    Problem,
    Role,
    fit_boxes,
    number_problem,
    rle_runs,
)
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError
from boxless.untrusted import inside, is_there, no_collection, parse_json

_SPELLINGS = {"train": "train(ing)?", "val": "val(id(ation)?)?", "test": "test(ing)?"}


def recognises(path: Path) -> bool:
    """Return whether a path is a .json file or a folder with some."""
    return path.suffix.lower() == ".json" if path.is_file() else bool(_jsons(path))


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
        return _Reader(file, load_dict(file), classes).read(images)


def _file_of(path: Path, split: str | None, role: Role) -> Path:
    if path.is_file():
        if split:
            raise UserError(f"{path}: a COCO file is one split; leave out ':{split}'")
        return path
    files = _jsons(path)
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
    """Return the files that are named by a split."""
    word = _SPELLINGS.get(split, re.escape(split))  # no part of a word: trainval is not val, nor latest test
    found = [file for file in files if re.search(f"(?<![a-z]){word}(?![a-z])", file.stem, re.IGNORECASE)]
    return [file for file in found if file.stem.startswith("instances")] or found  # beside captions, keypoints


def _jsons(folder: Path) -> list[Path]:
    return sorted([*folder.glob("annotations/*.json"), *folder.glob("*.json")])


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
        raise UserError(f"{path}: not a COCO dict but a JSON {type(data).__name__}; expected images, annotations, ...")
    for key in lists:
        if not isinstance(data.get(key), list):
            fault = "lacks the key" if key not in data else "expected a list under the key"
            raise UserError(f"{path}: not a COCO dict: {fault} '{key}'")
    coco: dict[str, Any] = data
    return coco


class _Reader:
    """One pass over categories, images and annotations that share ids and collect problems."""

    def __init__(self, path: Path, data: dict[str, Any], classes: Sequence[str] | None) -> None:
        self.path, self.data, self.wanted = path, data, classes
        self.problems: list[Problem] = []

    def read(self, images: Path | None) -> LabelledData:
        classes, category_ids, class_of = self.categories()
        self.skeleton, self.with_skeleton, broken = find_skeleton(self.data["categories"])
        for number, message in broken:
            self.problem(f"category {number}", message)
        rows = self.images(images)
        frequencies = self.frequencies(classes)
        grouped = self.annotations({image["id"]: n for n, (image, _) in enumerate(rows)}, class_of, rows)
        found = tuple(
            LabelledImage(
                file,
                image["id"],
                image["width"],
                image["height"],
                *parts,
                negative=self.looked_for(image, "neg_category_ids", class_of),
                not_exhaustive=self.looked_for(image, "not_exhaustive_category_ids", class_of),
            )
            for (image, file), parts in zip(rows, grouped, strict=True)
        )
        problems = tuple(self.problems)
        return LabelledData(
            str(self.path), classes, category_ids, found, problems, self.skeleton, frequencies=frequencies
        )

    def problem(self, entry: str, message: str) -> None:
        self.problems.append(Problem(str(self.path), entry, message))

    def categories(self) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
        """Return names, ids, and the class index of every usable category id (-1: not among the wanted classes)."""
        name_of: dict[int, str] = {}
        for n, category in enumerate(self.data["categories"]):
            number, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
            if type(number) is not int:
                self.problem(f"categories[{n}]", f"category without an integer id: {number!r:.40}")
            elif number in name_of:
                self.problem(f"category {number}", "duplicate category id")
            elif not isinstance(name, str) or not name.strip():
                self.problem(f"category {number}", "empty category name")
            else:
                if name in name_of.values():
                    self.problem(f"category {number}", f"duplicate category name, joined with the first: '{name}'")
                name_of[number] = name
        if not name_of:
            raise UserError(f"{self.path}: no usable entry under 'categories'; expected id and name of each class")
        first_id = {name: number for number, name in sorted(name_of.items(), reverse=True)}
        classes = tuple(self.wanted) if self.wanted is not None else tuple(sorted(first_id, key=first_id.__getitem__))
        index = {name: k for k, name in enumerate(classes)}
        spare = max(name_of)
        category_ids = []
        for name in classes:
            spare += name not in first_id
            category_ids.append(first_id.get(name, spare))
        return classes, tuple(category_ids), {number: index.get(name, -1) for number, name in name_of.items()}

    def frequencies(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return LVIS's frequency group of each class; nothing if no category has one."""
        entries = [entry for entry in self.data["categories"] if type(entry) is dict and type(entry.get("name")) is str]
        known = {entry["name"]: entry["frequency"] for entry in entries if entry.get("frequency") in ("r", "c", "f")}
        return tuple(known.get(name, "") for name in classes) if known else ()

    def looked_for(self, image: dict[str, Any], key: str, class_of: dict[int, int]) -> tuple[int, ...]:
        """Return the classes that LVIS lists under an image's key."""
        ids = image.get(key)
        known = ids if type(ids) is list else ()
        return tuple(class_of[k] for k in known if type(k) is int and class_of.get(k, -1) >= 0)

    def images(self, folder: Path | None) -> list[tuple[dict[str, Any], Path]]:
        """Return the usable image entries and their files."""
        entries: list[dict[str, Any]] = []
        seen: set[int | str] = set()
        for n, image in enumerate(map(_with_file_name, self.data["images"])):
            if not isinstance(image, dict) or type(image.get("id")) not in (int, str):
                self.problem(f"images[{n}]", "image without an id")
            elif image["id"] in seen:
                self.problem(f"image {image['id']}", "duplicate image id")
            elif not isinstance(image.get("file_name"), str) or not image["file_name"] or "\0" in image["file_name"]:
                self.problem(f"image {image['id']}", "image without a file_name")
            elif not os.path.isabs(image["file_name"]) and inside(Path(), image["file_name"]) is None:
                self.problem(f"image {image['id']}", f"file_name leads out of the folder: {image['file_name']:.80}")
            else:
                seen.add(image["id"])
                entries.append(image)
        if self.data["images"] and not entries:
            last = self.problems[-1]
            raise UserError(f"{self.path}: no usable entry under 'images', e.g. {last.entry}: {last.message}")
        folder = folder or self.folder([image["file_name"] for image in entries[:20]])
        found = [entry for image in entries if (entry := self.image(image, folder / image["file_name"]))]
        if not found:
            raise UserError(f"{self.path}: no images left: of {len(self.data['images'])} none is usable in {folder}")
        return found

    def image(self, image: dict[str, Any], file: Path) -> tuple[dict[str, Any], Path] | None:
        entry = f"image {image['id']}"
        if not is_there(file):
            self.problem(entry, f"missing image file: {file}")
            return None
        width, height = image.get("width"), image.get("height")
        if type(width) is type(height) is int and min(width, height) > 0 and width * height <= PIXEL_LIMIT:
            return image, file
        try:
            width, height = image_size(file)
        except BadImage as error:
            self.problem(entry, f"unreadable image file: {error}")
            return None
        self.problem(entry, f"width or height is no size, taken from the file: {width} x {height}")
        return {**image, "width": width, "height": height}, file

    def folder(self, names: list[str]) -> Path:
        """Return the first likely folder that holds one of the images `names`."""
        here = self.path.parent
        split = self.path.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        near = [here, here.parent / "images" / split, here.parent / split, here.parent / "images", here.parent]
        near += [here / "images" / split, here / split, here / "images", here.parent / "coco"]
        for folder in near:
            if any(is_there(folder / name) for name in names):
                return folder
        looked = ", ".join(dict.fromkeys(str(folder) for folder in near[:4]))
        raise UserError(f"{self.path}: its images are not found; looked in {looked}; give images=FOLDER")

    def annotations(
        self, row_of: dict[int | str, int], class_of: dict[int, int], rows: list[tuple[dict[str, Any], Path]]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Mask | None, ...] | None, np.ndarray | None]]:
        """Return boxes, labels, crowd, masks and keypoints of every row."""
        known = {
            image.get("id") for image in self.data["images"] if isinstance(image, dict) and _is_id(image.get("id"))
        }
        kept: list[dict[str, Any]] = []
        seen: set[int | str] = set()
        unwanted: Counter[int] = Counter()
        for n, entry in enumerate(self.data["annotations"]):
            message = _structural_problem(entry, known, class_of, seen)
            if message:
                name = f"annotation {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"annotations[{n}]"
                self.problem(name, message)
            elif class_of[entry["category_id"]] < 0:
                unwanted[entry["category_id"]] += 1
            elif entry["image_id"] in row_of:
                kept.append(entry)
        for number, count in unwanted.items():
            self.problem(f"category {number}", f"class is not among the given classes: {count} annotations left out")
        row = np.array([row_of[entry["image_id"]] for entry in kept], dtype=np.int64)
        sizes = np.array([(image["width"], image["height"]) for image, _ in rows], dtype=np.float64)
        boxes = np.array([entry["bbox"] for entry in kept], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # coco xywh -> xyxy
        clipped, keep, box_problems = fit_boxes(boxes, sizes[row])
        for n, message in box_problems:
            self.problem(f"annotation {kept[n].get('id', '?')}", message)
        order = np.flatnonzero(keep)
        order = order[np.argsort(row[order], kind="stable")]
        labels = np.array([class_of[entry["category_id"]] for entry in kept], dtype=np.int64)
        crowd = np.array([entry.get("iscrowd") in (1, True) for entry in kept], dtype=bool)
        masks = [self.mask(kept[n], sizes[row[n]]) for n in order]
        count = len(self.skeleton.names)
        points = np.array([self.keypoints(kept[n]) for n in order], np.float32).reshape(len(order), count, 3)
        ends = np.cumsum(np.bincount(row[order], minlength=len(rows))).tolist()
        arrays = clipped[order].astype(np.float32), labels[order], crowd[order]
        grouped = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            part = tuple(masks[start:end])
            some = part if any(mask is not None for mask in part) else None
            grouped.append((*(array[start:end] for array in arrays), some, points[start:end] if count else None))
        return grouped  # type: ignore[return-value]  # a starred generator has no fixed length

    def mask(self, entry: dict[str, Any], size: np.ndarray) -> Mask | None:
        """Return the entry's usable mask; a broken one costs the mask, not the box."""
        mask = entry.get("segmentation")
        if mask is None or mask == []:
            return None
        message = _rle_problem(mask, size) if isinstance(mask, dict) else _polygon_problem(mask)
        if not message:
            return {key: mask[key] for key in ("size", "counts")} if isinstance(mask, dict) else mask
        self.problem(f"annotation {entry.get('id', '?')}", f"{message}; kept the box only")
        return None

    def keypoints(self, entry: dict[str, Any]) -> np.ndarray:
        """Return the entry's keypoints, (K, 3); none of them labelled if there are none, or broken ones."""
        values, count = entry.get("keypoints"), len(self.skeleton.names)
        if values and entry["category_id"] in self.with_skeleton:
            message = number_problem(values, 3 * count)
            if not message and not {0, 1, 2}.issuperset(values[2::3]):
                message = "visibility other than 0, 1 or 2"
            if not message:
                return from_coco(values)
            self.problem(f"annotation {entry.get('id', '?')}", f"keypoints: {message}; left out")
        return np.zeros((count, 3), np.float32)


def _with_file_name(image: Any) -> Any:
    """LVIS names an image by its address, whose end is folder and file: train2017/000000391895.jpg."""
    url = image.get("coco_url") if isinstance(image, dict) and not image.get("file_name") else None
    return {**image, "file_name": "/".join(url.split("/")[-2:])} if isinstance(url, str) and url else image


def _is_id(value: object) -> bool:
    return type(value) is int or type(value) is str


def _structural_problem(entry: Any, known: set[Any], class_of: dict[int, int], seen: set[int | str]) -> str:
    """Say what is wrong with an annotation before its box is looked at; notes its id in `seen`."""
    if not isinstance(entry, dict):
        return f"annotation is not a dict: {type(entry).__name__}"
    number, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
    if number is not None:
        if not _is_id(number):
            return f"annotation id is neither integer nor string: {number!r:.40}"
        if number in seen:
            return "duplicate annotation id"
        seen.add(number)
    if not _is_id(image) or image not in known:
        return f"annotation of an unknown image: {image!r:.40}"
    if type(category) is not int or category not in class_of:
        return f"unknown category id: {category!r:.40}"
    return number_problem(entry.get("bbox"), 4)


def _polygon_problem(mask: Any) -> str:
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return f"mask is neither polygons nor RLE: {type(mask).__name__}"
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon with fewer than 3 points or an odd count: {len(polygon)} numbers"
        if message := number_problem(polygon, len(polygon)):
            return f"polygon {message}"
    return ""


def _rle_problem(mask: dict[str, Any], size: np.ndarray) -> str:
    counts = mask.get("counts")
    if mask.get("size") != [int(size[1]), int(size[0])]:
        return f"RLE size is not the image's [height, width]: {mask.get('size')!r:.40}"
    try:
        runs = rle_runs(counts) if isinstance(counts, list | str) else []
        whole = {int}.issuperset(map(type, runs))
        if whole and sum(runs) == size[0] * size[1] and min(runs) >= 0:
            return ""
    except (TypeError, ValueError):
        pass
    return "RLE counts do not add up to the image"
