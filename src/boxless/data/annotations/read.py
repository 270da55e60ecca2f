"""Labelled data sets, whatever their format: one call finds out which it is and reads one split of it, or several."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from boxless.data.annotations import cityscapes, coco, voc, yolo
from boxless.data.annotations.select import joined
from boxless.data.annotations.types import (
    OBJECT_LIMIT,
    TOO_MANY,
    LabelledData,
    LabelledImage,
    Mask,
    Problem,
    problem_report,
)
from boxless.errors import UserError

__all__ = ["LabelledData", "LabelledImage", "Mask", "Problem", "is_voc_split", "problem_report", "read_labels"]

Role = Literal["train", "val"]
Format = Literal["auto", "coco", "voc", "yolo", "cityscapes"]

_SPLITS = {"train": ("train", "trainval"), "val": ("val", "test")}  # what a role reads, in order of preference
_SPELLINGS = {"train": "train(ing)?", "val": "val(id(ation)?)?", "test": "test(ing)?"}


def read_labels(
    where: str | Path | Sequence[str | Path],
    role: Role = "train",
    format: Format = "auto",
    images: Path | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledData:
    """Read labels: a COCO or LVIS .json, a VOC root or split file, a YOLO .yaml, or a folder that holds one of these.

    A suffix `:split` picks the split (`neu-det:train`, `data.yaml:val`), else `role` does. Several sets, as a list or
    with + between (`VOCdevkit/VOC2007:trainval+VOC2012:trainval`), become one. `images`: folder of the images.
    `classes`: the classes to use, e.g. those trained on; others are left out. Entries that are broken are left out or
    repaired, and listed in `problems`; image files are looked for, not opened.

    Raises:
        UserError: nothing usable there, an unknown split, more than one format, or sets that do not agree.
    """
    places = _places(where)
    if images is not None and not images.is_dir():
        raise UserError(f"images: no such folder: {images}")
    parts = [_read_one(path, split, role, format, images, classes) for path, split in places]
    if len(parts) == 1:
        return parts[0]
    # A VOC root has the classes of its objects, of which a small one may miss some; other formats list them.
    return joined(parts, union=classes is None and all(part.difficult for part in parts))


def _read_one(
    path: Path, split: str | None, role: Role, format: Format, images: Path | None, classes: Sequence[str] | None
) -> LabelledData:
    data = _read_format(path, split, role, format, images, classes)
    crowded = [image for image in data.images if len(image.boxes) > OBJECT_LIMIT]
    if not crowded:
        return data
    problems = [Problem(data.origin, f"image {i.path.name}", f"{TOO_MANY}, has {len(i.boxes):,}") for i in crowded]
    kept = [image for image in data.images if len(image.boxes) <= OBJECT_LIMIT]
    if not kept:
        raise UserError(f"{path}: no images left of {len(data)}; first: {problems[0]}")
    return replace(data, images=tuple(kept), problems=(*data.problems, *problems))


def _read_format(
    path: Path, split: str | None, role: Role, format: Format, images: Path | None, classes: Sequence[str] | None
) -> LabelledData:
    if is_voc_split(path):
        return voc.read(path.parents[2], path, images, classes)
    kind = _format(path, format)
    if kind == "cityscapes":
        return cityscapes.read(path, split or role, classes)
    if kind == "coco":
        return coco.read(_coco_file(path, split, role), images, classes)
    if kind == "voc":
        return voc.read(path, _voc_split(path, split, role), images, classes)
    path = _yaml_file(path)
    config = yolo.load_config(path)
    return yolo.read(path, split or next((s for s in _SPLITS[role] if config.get(s)), role), images, classes)


def is_voc_split(path: Path) -> bool:
    """Return whether `path` is a split file of a VOC root, ImageSets/Main/*.txt."""
    return path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Main") and path.is_file()


def _places(where: str | Path | Sequence[str | Path]) -> list[tuple[Path, str | None]]:
    """Return path and split of each set that is named."""
    if isinstance(where, str) and "+" in where and not split_off(where)[0].exists():
        where = where.split("+")
    named = [split_off(place) for place in ([where] if isinstance(where, str | Path) else where)]
    if not named:
        raise UserError("no labels given: expected COCO JSON, a Pascal VOC folder or a YOLO data.yaml")
    return [(_found(path, named[0][0].parent), split) for path, split in named]


def _found(path: Path, beside: Path) -> Path:
    """Return the path itself, or VOC2007 where it is: in a VOCdevkit, or beside the set that is named first."""
    if path.exists():
        return path
    if not re.fullmatch(r"VOC\d{4}", path.name):
        raise UserError(f"no such file or folder: {path}")
    for other in (path.parent / "VOCdevkit" / path.name, beside / path.name, beside / "VOCdevkit" / path.name):
        if other.is_dir():
            return other
    raise UserError(
        f"{path}: no such folder; expected Annotations/, JPEGImages/, ImageSets/Main/trainval.txt in it, "
        f"or in VOCdevkit/{path.name}"
    )


def split_off(where: str | Path) -> tuple[Path, str | None]:
    """Return a path and the split that its suffix `:split` names, if any."""
    path = Path(where)
    name, colon, split = path.name.rpartition(":")
    if path.exists() or not colon or not name:
        return path, None
    return path.with_name(name), split


def _format(path: Path, wanted: Format) -> str:
    if path.is_file():
        found = {".json": ["coco"], ".yaml": ["yolo"], ".yml": ["yolo"]}.get(path.suffix.lower(), [])
    else:
        found = formats_in(path)
    if wanted != "auto":
        found = [wanted] if wanted in found else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path}: holds labels as {' and '.join(found)}; set format= to one, or name the file")
    sets = sorted(folder.parent.name for folder in path.glob("*/Annotations")) if path.is_dir() else []
    if sets:
        both = "+".join(f"{name}:trainval" for name in sets[:2])
        raise UserError(f"{path}: holds the sets {', '.join(sets[:5])}; name one, or several: {path}/{both}")
    looked = "a COCO .json, a VOC root (Annotations/, JPEGImages/), a YOLO data.yaml or Cityscapes (leftImg8bit/)"
    raise UserError(f"{path}: no labels found; expected {looked if wanted == 'auto' else f'the format {wanted}'}")


def formats_in(folder: Path) -> list[str]:
    """The formats of the labels that a folder holds, by the names of its files; more than one is ambiguous."""
    tests = {"coco": _jsons(folder), "voc": (folder / "Annotations").is_dir(), "yolo": _yamls(folder)}
    tests["cityscapes"] = cityscapes.is_cityscapes(folder)
    return [kind for kind, there in tests.items() if there]


def _jsons(folder: Path) -> list[Path]:
    return sorted([*folder.glob("annotations/*.json"), *folder.glob("*.json")])


def _yamls(folder: Path) -> list[Path]:
    return [folder / "data.yaml"] if (folder / "data.yaml").is_file() else sorted(folder.glob("*.y*ml"))


def _coco_file(path: Path, split: str | None, role: Role) -> Path:
    if path.is_file():
        if split:
            raise UserError(f"{path}: a COCO file is one split; leave out ':{split}'")
        return path
    files = _jsons(path)
    names = (split,) if split else _SPLITS[role]
    others = () if split else _SPLITS["val" if role == "train" else "train"]
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


def _voc_split(root: Path, split: str | None, role: Role) -> Path | None:
    """Return the split file, None (all images) where the root has no splits."""
    folder = root / "ImageSets" / "Main"
    names = (split,) if split else _SPLITS[role]
    for name in names:
        if (folder / f"{name}.txt").is_file():
            return folder / f"{name}.txt"
    have = sorted(file.stem for file in folder.glob("*.txt"))
    if not have and not split:
        return None
    raise UserError(
        f"{folder}: no {' or '.join(f'{n}.txt' for n in names)}; it has: {', '.join(have[:8]) or 'nothing'}"
    )


def _yaml_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = _yamls(path)
    if len(files) > 1:
        raise UserError(f"{path}: several YAML files: {', '.join(file.name for file in files[:5])}; name one")
    return files[0]
