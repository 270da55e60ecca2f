"""Pascal VOC (Annotations/*.xml) to `LabelledData`.

VOC boxes are 1-based and inclusive, so pixels xmin..xmax cover [xmin - 1, xmax] of our frame. `difficult` objects
become `crowd`: VOC and COCO agree that such objects count neither as hits nor as misses.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from boxless.data.annotations.types import (
    COORDINATE_LIMIT,
    OBJECT_LIMIT,
    PIXEL_LIMIT,
    SPLITS,
    TOO_MANY,
    LabelledData,
    LabelledImage,
    Problem,
    Role,
    fit_boxes,
)
from boxless.data.images import EXTENSIONS, BadImage, image_size
from boxless.errors import UserError
from boxless.untrusted import inside, is_there, no_collection

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def recognises(path: Path) -> bool:
    """Return whether a path is a VOC root or one of its split files."""
    return is_voc_split(path) or (path / "Annotations").is_dir()


def is_voc_split(path: Path) -> bool:
    """Return whether `path` is a split file of a VOC root, ImageSets/Main/*.txt."""
    return path.suffix == ".txt" and path.parts[-3:-1] == ("ImageSets", "Main") and path.is_file()


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read the split of a VOC root, or a split file (one id per line); all images that have an .xml without splits.

    `images`: folder of the images, else JPEGImages. Classes are the sorted names found, or `classes`; category ids are
    1..n. Broken objects are left out and listed.

    Raises:
        UserError: no such split, it lists nothing, or none of its images is usable.
    """
    root, split_file = (path.parents[2], path) if is_voc_split(path) else (path, _split_file(path, split, role))
    annotations = root / "Annotations"
    origin = split_file or annotations
    names = split_names(split_file, annotations, ".xml") if split_file else sorted(p.stem for p in origin.glob("*.xml"))
    folder = images or root / "JPEGImages"
    missing = [part for part in ("Annotations", "JPEGImages") if not (root / part).is_dir()]
    if missing and images is None:
        listed = f"ImageSets/Main/{split_file.name if split_file else 'trainval.txt'}"
        raise UserError(f"{root}: expected Annotations/, JPEGImages/, {listed}; there is no {' and no '.join(missing)}")
    try:
        files = {file.stem: file for file in map(Path, sorted(os.listdir(folder))) if file.suffix.lower() in EXTENSIONS}
    except OSError as error:
        raise UserError(f"{folder}: no such folder; expected the images of {origin}; give images=FOLDER") from error
    problems: list[Problem] = []
    parsed = []
    for name in names:
        xml = inside(annotations, f"{name}.xml")
        if xml is None:
            problems.append(Problem(str(origin), f"image {name:.80}", "leads out of the folder of annotations"))
            continue
        image = _read_image(xml, folder, files.get(name), classes, problems)
        if image is not None:
            parsed.append(image)
    if not parsed:
        first = f"; first: {problems[0]}" if problems else ""
        raise UserError(f"{origin}: no images left of {len(names)} in {folder}{first}")
    found = tuple(sorted({name for image in parsed for name in image.names}))
    kept = tuple(classes) if classes is not None else found
    label_of = {name: k for k, name in enumerate(kept)}
    unwanted = Counter(name for image in parsed for name in image.names if name not in label_of)
    for name, count in unwanted.items():
        problems.append(Problem(str(origin), f"class {name}", f"class is not among the given classes: {count} objects"))
    labelled = tuple(image.labelled(label_of) for image in parsed)
    ids = tuple(range(1, len(kept) + 1))
    return LabelledData(str(origin), kept, ids, labelled, tuple(problems), difficult=True)


def _split_file(root: Path, split: str | None, role: Role) -> Path | None:
    """Return the split file, None (all images) where the root has no splits."""
    folder = root / "ImageSets" / "Main"
    names = (split,) if split else SPLITS[role]
    for name in names:
        if (folder / f"{name}.txt").is_file():
            return folder / f"{name}.txt"
    have = sorted(file.stem for file in folder.glob("*.txt"))
    if not have and not split:
        return None
    raise UserError(
        f"{folder}: no {' or '.join(f'{n}.txt' for n in names)}; it has: {', '.join(have[:8]) or 'nothing'}"
    )


@dataclass
class _Parsed:
    """An image whose objects still carry names."""

    image: LabelledImage
    names: list[str]

    def labelled(self, label_of: dict[str, int]) -> LabelledImage:
        keep = np.array([name in label_of for name in self.names], dtype=bool)
        labels = np.array([label_of[name] for name in self.names if name in label_of], dtype=np.int64)
        return replace(self.image, boxes=self.image.boxes[keep], labels=labels, crowd=self.image.crowd[keep])


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
    xml: Path, folder: Path, name: Path | None, classes: Sequence[str] | None, problems: list[Problem]
) -> _Parsed | None:
    try:
        tree = _parse(xml)
    except (OSError, ValueError, ElementTree.ParseError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.append(Problem(str(xml), "file", f"annotation file cannot be read: {reason}"))
        return None
    file = folder / (name or Path(_text(tree, "filename")).name or xml.stem)
    if not is_there(file):
        problems.append(Problem(str(xml), "file", f"missing image file: {folder / xml.stem}.jpg"))
        return None
    size = [_number(tree, f"size/{side}") for side in ("width", "height")]
    if not (min(size) >= 1 and size[0] * size[1] <= PIXEL_LIMIT):  # NaN fails too
        try:
            size = [float(side) for side in image_size(file)]
        except BadImage as error:
            problems.append(Problem(str(xml), "size", f"no <size> and an unreadable image file: {error}"))
            return None
    wanted = (item for item in tree.iter("object") if classes is None or _text(item, "name") in classes)
    if (count := sum(1 for _ in wanted)) > OBJECT_LIMIT:  # before their boxes are looked at
        problems.append(Problem(str(xml), "objects", f"{TOO_MANY}, has {count:,}"))
        return None
    width, height = map(int, size)
    names, boxes, crowd = _objects(tree, xml, (width, height), problems)
    labels = np.zeros(len(names), dtype=np.int64)
    return _Parsed(LabelledImage(file, xml.stem, width, height, boxes, labels, crowd), names)


def _objects(
    tree: ElementTree.Element, xml: Path, size: tuple[int, int], problems: list[Problem]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names, boxes (N, 4) float32 and crowd (N,) of the usable objects."""
    names, raw, crowd, entries = [], [], [], []
    for n, item in enumerate(tree.iter("object"), 1):
        name = _text(item, "name")
        entry = f"object {n} ({name})" if name else f"object {n}"
        place = item.find("bndbox")
        texts = [] if place is None else [_text(place, side) for side in _SIDES]
        box = [_float(text) for text in texts]
        if message := _object_problem(name, texts, box):
            problems.append(Problem(str(xml), entry, message))
            continue
        names.append(name)
        raw.append((box[0] - 1, box[1] - 1, box[2], box[3]))  # 1-based, inclusive
        crowd.append(_text(item, "difficult") == "1")
        entries.append(entry)
    boxes = np.array(raw, dtype=np.float64).reshape(-1, 4)
    sizes = np.tile(np.array(size, dtype=np.float64), (len(boxes), 1))
    clipped, keep, box_problems = fit_boxes(boxes, sizes)
    problems += [Problem(str(xml), entries[n], message) for n, message in box_problems]
    kept_names = [name for name, ok in zip(names, keep, strict=True) if ok]
    return kept_names, clipped[keep].astype(np.float32), np.array(crowd, dtype=bool)[keep]


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


def _parse(xml: Path) -> ElementTree.Element:
    with no_collection():  # most of the time of a million objects
        return ElementTree.fromstring(xml.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
