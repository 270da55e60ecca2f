"""Labelled data sets, whatever their format: one call finds out which it is and reads one split of it, or several."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from boxless.data.annotations import cityscapes, coco, cvat, labelme, supervisely, tools, voc, yolo
from boxless.data.annotations.select import joined
from boxless.data.annotations.types import (
    OBJECT_LIMIT,
    TOO_MANY,
    LabelledData,
    LabelledImage,
    Mask,
    Problem,
    Role,
    problem_report,
    without_doubles,
)
from boxless.errors import UserError

__all__ = ["LabelledData", "LabelledImage", "Mask", "Problem", "problem_report", "read_labels"]

Format = Literal["auto", "coco", "voc", "yolo", "cityscapes", "labelme", "supervisely", "cvat"]


class LabelFormat(Protocol):
    """A module that reads one format."""

    def recognises(self, path: Path) -> bool:
        """Return whether a file is of this format, or a folder holds such files, by their names."""

    def read(
        self,
        path: Path,
        split: str | None,
        role: Role,
        images: Path | None = None,
        classes: Sequence[str] | None = None,
    ) -> LabelledData:
        """Read one split; see `read_labels`.

        Raises:
            UserError: no such split, or nothing usable in it.
        """


FORMATS: dict[str, LabelFormat] = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "cityscapes": cityscapes,
    "labelme": labelme,
    "supervisely": supervisely,
    "cvat": cvat,
}


def read_labels(
    where: str | Path | Sequence[str | Path],
    role: Role = "train",
    format: Format = "auto",
    images: Path | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledData:
    """Read labels: a COCO or LVIS .json, a VOC root or split file, a YOLO .yaml, or a folder that holds one of these.

    Folders of labelling tools are read too: Roboflow's, Label Studio's, CVAT's, Labelme's and Supervisely's.

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
    kind = "voc" if voc.is_voc_split(path) else _format(path, format)
    data = without_doubles(FORMATS[kind].read(path, split, role, images, classes))
    crowded = [image for image in data.images if len(image.boxes) > OBJECT_LIMIT]
    if not crowded:
        return data
    problems = [
        Problem(data.origin, f"image {image.path.name}", f"{TOO_MANY}, has {len(image.boxes):,}", len(image.boxes))
        for image in crowded
    ]
    kept = [image for image in data.images if len(image.boxes) <= OBJECT_LIMIT]
    if not kept:
        raise UserError(f"{path}: no images left of {len(data)}; first: {problems[0]}")
    return replace(data, images=tuple(kept), problems=(*data.problems, *problems))


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
    found = formats_in(path)
    if wanted != "auto":
        found = [wanted] if wanted in found else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path}: holds labels as {' and '.join(found)}; name the file of one, or its folder")
    sets = sorted(folder.parent.name for folder in path.glob("*/Annotations")) if path.is_dir() else []
    if sets:
        both = "+".join(f"{name}:trainval" for name in sets[:2])
        raise UserError(f"{path}: holds the sets {', '.join(sets[:5])}; name one, or several: {path}/{both}")
    if hint := tools.described(path):
        raise UserError(f"{path}: no labels found that are read; {hint}")
    looked = "a COCO .json, a VOC root (Annotations/, JPEGImages/), a YOLO data.yaml or Cityscapes (leftImg8bit/)"
    raise UserError(f"{path}: no labels found; expected {looked if wanted == 'auto' else f'the format {wanted}'}")


def formats_in(path: Path) -> list[str]:
    """The formats of the labels that a folder or file holds, by the names of files; more than one is ambiguous."""
    return [name for name, each in FORMATS.items() if each.recognises(path)]
