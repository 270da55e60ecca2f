"""CVAT for images (annotations.xml) to `LabelledData`; polygons become masks and their boxes."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from boxless.data.annotations.locate import ImageFiles
from boxless.data.annotations.named import NamedImage, NamedObject, size_of, to_data
from boxless.data.annotations.types import SPLITS, LabelledData, Mask, Problem, Role, number_problem
from boxless.data.annotations.voc import parse
from boxless.errors import UserError

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_SHAPES = ("box", "polygon", "ellipse", "polyline", "points", "mask", "cuboid", "skeleton")


def recognises(path: Path) -> bool:
    """Return whether a path is an .xml of CVAT, or a folder with its annotations.xml."""
    file = _file(path)
    if file.suffix.lower() != ".xml" or not file.is_file():
        return False
    with file.open("rb") as opened:
        return b"<annotations" in opened.read(1000)


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read the images of a split if some have one (subset="train"), else all.

    `images`: folder of the images, else looked for beside the file. Classes are the task's labels, or `classes`.
    Shapes other than boxes, ellipses and polygons are left out and listed.

    Raises:
        UserError: no XML, tracks of a video, no such subset, or no image is left.
    """
    file = _file(path)
    try:
        root = parse(file)
    except (OSError, ValueError, ElementTree.ParseError, LookupError) as error:
        raise UserError(f"{file}: not valid XML: {error}") from error
    if root.find("track") is not None:
        raise UserError(f"{file}: is of CVAT for video; export 'CVAT for images 1.1' or COCO from the same task")
    entries = _of_split(file, list(root.iter("image")), split, role)
    near = [images] if images else [file.parent, file.parent / "images", file.parent]
    files = ImageFiles([entry.get("name", "") for entry in entries], near)
    problems: list[Problem] = []
    found = [_read_image(entry, file, files, problems) for entry in entries]
    names = [name for each in root.iter("label") if (name := (each.findtext("name") or "").strip())]
    return to_data(str(file), [image for image in found if image is not None], names or None, classes, problems)


def _file(path: Path) -> Path:
    return path / "annotations.xml" if path.is_dir() else path


def _of_split(
    file: Path, entries: list[ElementTree.Element], split: str | None, role: Role
) -> list[ElementTree.Element]:
    subsets = {entry.get("subset", "").lower() for entry in entries} - {"", "default"}
    if not subsets or (len(subsets) == 1 and not split):
        return entries
    names = (split.lower(),) if split else (*SPLITS[role], "validation" if role == "val" else "training")
    name = next((name for name in names if name in subsets), None)
    if name is None:
        raise UserError(f"{file}: no subset {' or '.join(names)}; it has: {', '.join(sorted(subsets)[:8])}")
    return [entry for entry in entries if entry.get("subset", "").lower() == name]


def _read_image(
    entry: ElementTree.Element, file: Path, files: ImageFiles, problems: list[Problem]
) -> NamedImage | None:
    name = entry.get("name", "")
    shapes = [shape for shape in entry if shape.tag in _SHAPES]
    image = files.find(name) if name else None
    if image is None:
        problems.append(
            Problem(str(file), f"image {name:.80}", f"missing image file: {files.expected(name)}", len(shapes))
        )
        return None
    size = size_of(image, (_float(entry.get("width")), _float(entry.get("height"))), file, problems, len(shapes))
    objects = []
    for shape in shapes:
        called = f"image {name}, {shape.tag} {shape.get('label', '')}"
        found = _object(shape, called)
        if isinstance(found, str):
            problems.append(Problem(str(file), called, found, 1))
        else:
            objects.append(found)
    return None if size is None else NamedImage(image, file, name, *size, objects)


def _object(shape: ElementTree.Element, called: str) -> NamedObject | str:
    """The object, or what is wrong with it."""
    label = shape.get("label", "").strip()
    if not label:
        return "shape without a label"
    mask: Mask | None = None
    if shape.tag == "box":
        x1, y1, x2, y2 = values = [_float(shape.get(side)) for side in _SIDES]
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif shape.tag == "ellipse":
        x, y, rx, ry = values = [_float(shape.get(key)) for key in ("cx", "cy", "rx", "ry")]
        corners = [(x - rx, y - ry), (x + rx, y + ry)]
    elif shape.tag == "polygon":
        values = [_float(number) for number in shape.get("points", "").replace(";", ",").split(",")]
        corners = list(zip(values[::2], values[1::2], strict=False))
        mask = [values]
    else:
        return f"shape without a box: {shape.tag}"
    turn = _float(shape.get("rotation", "0"))
    if message := number_problem([*values, turn], (len(corners) * 2 if mask else 4) + 1):
        return message
    if mask and len(corners) < 3:
        return "polygon with fewer than 3 points"
    angle = math.radians(turn)
    if shape.tag == "box" and angle % (2 * math.pi):
        corners = _turned(corners, angle)
    xs, ys = zip(*corners, strict=True)
    return NamedObject(label, called, (min(xs), min(ys), max(xs), max(ys)), mask)


def _turned(corners: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    """Corners turned around their middle, clockwise on the image by `angle`, radians."""
    x0, y0 = (corners[0][0] + corners[2][0]) / 2, (corners[0][1] + corners[2][1]) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x0 + cos * (x - x0) - sin * (y - y0), y0 + sin * (x - x0) + cos * (y - y0)) for x, y in corners]


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
