"""Pascal VOC (Annotations/*.xml, or .xml files beside their images) to `LabelledData`.

VOC boxes are 1-based and inclusive, so pixels xmin..xmax cover [xmin - 1, xmax] of our frame. Many tools count from 0
instead, which a 0 proves; then [xmin, xmax] is covered. `difficult` objects become `crowd`: VOC and COCO agree that
such objects count neither as hits nor as misses.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boxless.data.annotations.named import NamedImage, NamedObject, size_of, to_data
from boxless.data.annotations.types import (
    COORDINATE_LIMIT,
    OBJECT_LIMIT,
    SPLITS,
    TOO_MANY,
    LabelledData,
    Problem,
    Role,
    role_folder,
)
from boxless.data.images import EXTENSIONS
from boxless.errors import UserError
from boxless.untrusted import inside, is_there, no_collection

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FROM_ZERO = re.compile(rb"<[xy]min>\s*(0*\.\d+|0+(\.\d*)?)\s*<")


def recognises(path: Path) -> bool:
    """Return whether a path is a VOC root, one of its split files, or a folder of .xml files with <object>s."""
    if is_voc_split(path) or (path / "Annotations").is_dir():
        return True
    first = next(iter(sorted(role_folder(path, None, "train").glob("*.xml"))), None)
    return first is not None and re.search(rb"<annotation[\s>]", _content(first)[:1000]) is not None


def is_voc_split(path: Path) -> bool:
    """Return whether `path` is a split file of a VOC root, ImageSets/Main/*.txt."""
    return path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Main") and path.is_file()


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read the split of a VOC root, or a split file (one id per line); all images that have an .xml without splits.

    `images`: folder of the images, else JPEGImages. Classes are the sorted names found, or `classes`; category ids are
    1..n. Broken objects are left out and listed. In both folders files may lie at any depth; an id is a path then.

    Raises:
        UserError: no such split, it lists nothing, or none of its images is usable.
    """
    if not is_voc_split(path) and not (path / "Annotations").is_dir():
        folder = role_folder(path, split, role)
        return _read(folder, folder, None, classes)
    root, split_file = (path.parents[2], path) if is_voc_split(path) else (path, _split_file(path, split, role))
    missing = [part for part in ("Annotations", "JPEGImages") if not (root / part).is_dir()]
    if missing and images is None:
        listed = f"ImageSets/Main/{split_file.name if split_file else 'trainval.txt'}"
        raise UserError(f"{root}: expected Annotations/, JPEGImages/, {listed}; there is no {' and no '.join(missing)}")
    return _read(root / "Annotations", images or root / "JPEGImages", split_file, classes)


def _read(annotations: Path, folder: Path, split_file: Path | None, classes: Sequence[str] | None) -> LabelledData:
    origin = split_file or annotations
    every = sorted(annotations.rglob("*.xml"))
    names = split_names(split_file, annotations, ".xml") if split_file else [_name(xml, annotations) for xml in every]
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in EXTENSIONS:
            files.setdefault(_name(file, folder), []).append(file)
    problems: list[Problem] = []
    first = 1
    if any(_FROM_ZERO.search(_content(xml)) for xml in every):
        first = 0
        message = "boxes count from 0, as some are 0 or less than 1, and are read so; VOC's count from 1"
        problems.append(Problem(str(annotations), "xmin, ymin", message))
    parsed = []
    for name in names:
        xml = inside(annotations, f"{name}.xml")
        if xml is None:
            problems.append(Problem(str(origin), f"image {name:.80}", "leads out of the folder of annotations", 1))
            continue
        image = _read_image(xml, name, folder, files.get(name, []), classes, first, problems)
        if image is not None:
            parsed.append(image)
    return to_data(str(origin), parsed, None, classes, problems, difficult=True)


def _content(xml: Path) -> bytes:
    try:
        return xml.read_bytes()
    except OSError:  # is said when it is parsed
        return b""


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _split_file(root: Path, split: str | None, role: Role) -> Path | None:
    """Return the split file, None (all images) where the root has no splits; a single one of no role is for all."""
    folder = root / "ImageSets" / "Main"
    names = (split,) if split else SPLITS[role]
    for name in names:
        if (folder / f"{name}.txt").is_file():
            return folder / f"{name}.txt"
    have = sorted(file.stem for file in folder.glob("*.txt"))
    if not have and not split:
        return None
    if len(have) == 1 and not split and not any(have[0] in others for others in SPLITS.values()):
        return folder / f"{have[0]}.txt"  # CVAT's default.txt
    raise UserError(
        f"{folder}: no {' or '.join(f'{n}.txt' for n in names)}; it has: {', '.join(have[:8]) or 'nothing'}"
    )


def split_names(split_file: Path, folder: Path, suffix: str) -> list[str]:
    """The image ids that a file of ImageSets lists, each once, without those that it marks as holding no object (-1).

    An id may have spaces in it: a line is one where `folder` has a file of that name and `suffix`.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        lines = [line.strip() for line in split_file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{split_file}: cannot be read as a list of image ids: {error}") from error
    names = []
    for line in filter(None, lines):
        file = inside(folder, f"{line}{suffix}")
        name, *mark = line.rsplit(maxsplit=1)
        marked = mark in (["-1"], ["0"], ["1"])  # cat_train.txt: 1 = holds a cat, 0 = a difficult one, -1 = none
        if not marked or (file is not None and is_there(file)):
            names.append(line)
        elif mark != ["-1"]:
            names.append(name)
    return list(dict.fromkeys(names))


def _read_image(
    xml: Path,
    name: str,
    folder: Path,
    files: list[Path],
    classes: Sequence[str] | None,
    first: int,
    problems: list[Problem],
) -> NamedImage | None:
    """An image of which all files of its name are given; `first`: number of the first pixel."""
    try:
        tree = parse(xml)
    except (OSError, ValueError, ElementTree.ParseError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.append(Problem(str(xml), "file", f"annotation file cannot be read: {reason}", 1))
        return None
    wanted = [item for item in tree.iter("object") if classes is None or _text(item, "name") in classes]
    stated = Path(_text(tree, "filename").replace("\\", "/")).name or xml.stem
    named = [file for file in files if file.name == stated] or files or [(folder / name).with_name(stated)]
    if len(named) > 1:
        both = f"{named[0].name} and {named[1].name}"
        problems.append(
            Problem(str(xml), "filename", f"image files of one name: {both}, it names neither", len(wanted))
        )
        return None
    file = named[0]
    if not is_there(file):
        problems.append(Problem(str(xml), "file", f"missing image file: {folder / name}.jpg", len(wanted)))
        return None
    stated_size = [_number(tree, f"size/{side}") for side in ("width", "height")]
    size = size_of(file, stated_size, xml, problems, len(wanted))
    if size is None:
        return None
    if len(wanted) > OBJECT_LIMIT:  # before their boxes are looked at
        problems.append(Problem(str(xml), "objects", f"{TOO_MANY}, has {len(wanted):,}", len(wanted)))
        return None
    return NamedImage(file, xml, name, *size, _objects(tree, xml, first, problems))


def _objects(tree: ElementTree.Element, xml: Path, first: int, problems: list[Problem]) -> list[NamedObject]:
    """Return the objects with a name and numbers for a box."""
    objects = []
    for n, item in enumerate(tree.iter("object"), 1):
        name = _text(item, "name")
        entry = f"object {n} ({name})" if name else f"object {n}"
        place = item.find("bndbox")
        texts = [] if place is None else [_text(place, side) for side in _SIDES]
        box = [_float(text) for text in texts]
        if message := _object_problem(name, texts, box):
            problems.append(Problem(str(xml), entry, message, 1))
            continue
        corners = (box[0] - first, box[1] - first, box[2], box[3])
        objects.append(NamedObject(name, entry, corners, crowd=_text(item, "difficult") == "1"))
    return objects


def _object_problem(name: str, texts: list[str], box: list[float]) -> str:
    if not name:
        return "object without <name>"
    if not texts:
        return "object without <bndbox>"
    for side, text, value in zip(_SIDES, texts, box, strict=True):
        if not text:
            return f"wrong number of coordinates: <{side}> is missing"
        if not -COORDINATE_LIMIT < value < COORDINATE_LIMIT:
            ordinary = text.lower().lstrip("+-") not in ("nan", "inf", "infinity") and np.isnan(value)
            return f"coordinate is {'not a number' if ordinary else 'not finite'}: <{side}> {text:.40}"
    return ""


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: ElementTree.Element, path: str) -> float:
    return _float(_text(element, path))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE: the only place where entities that expand without end can be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("<!DOCTYPE> is not allowed")


def parse(xml: Path) -> ElementTree.Element:
    """Return the root of an XML file without a DOCTYPE; raises OSError, ValueError, LookupError, ParseError."""
    with no_collection():  # most of the time of a million objects
        return ElementTree.fromstring(xml.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
