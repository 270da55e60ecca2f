"""Labelme (a .json for each image, beside it) to `LabelledData`; polygons become masks and their boxes.

Shapes of one label and `group_id` are parts of one object.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxless.data.annotations import tools
from boxless.data.annotations.named import NamedImage, NamedObject, size_of, to_data
from boxless.data.annotations.types import LabelledData, Mask, Problem, Role, number_problem, role_folder
from boxless.untrusted import is_there


def recognises(path: Path) -> bool:
    """Return whether a folder's first .json is Labelme's; or that of its training images, in folders of splits."""
    first = next(iter(sorted(role_folder(path, None, "train").glob("*.json"))), None)
    content = None if first is None else tools.load_small(first)
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read the .json files of a folder, or of the split's folder in it, at any depth.

    `images`: folder of the images, else beside their labels. Classes are the sorted names found, or `classes`.
    Points and lines are left out and listed.

    Raises:
        UserError: no image is left.
    """
    folder = role_folder(path, split, role)
    problems: list[Problem] = []
    read_all = [_read_image(file, folder, images, problems) for file in sorted(folder.rglob("*.json"))]
    return to_data(str(folder), [image for image in read_all if image is not None], None, classes, problems)


def _read_image(file: Path, folder: Path, images: Path | None, problems: list[Problem]) -> NamedImage | None:
    content = tools.load_small(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        problems.append(Problem(str(file), "file", "annotation file without Labelme's 'shapes'", 1))
        return None
    count, stated = len(content["shapes"]), content.get("imagePath")
    name = stated.replace("\\", "/").rpartition("/")[2] if isinstance(stated, str) else ""
    places = [images] if images else [file.parent, folder / "images", folder.parent / "images", folder.parent]
    tries = [place / (name or file.stem) for place in places]
    place = next(filter(is_there, tries), tries[0])
    if not is_there(place):
        problems.append(Problem(str(file), "imagePath", f"missing image file: {place}", count))
        return None
    size = size_of(place, (content.get("imageWidth"), content.get("imageHeight")), file, problems, count)
    if size is None:
        return None
    name = file.relative_to(folder).with_suffix("").as_posix()
    return NamedImage(place, file, name, *size, _objects(content["shapes"], file, problems))


def _objects(shapes: list[Any], file: Path, problems: list[Problem]) -> list[NamedObject]:
    found: list[NamedObject] = []
    group_of: dict[Any, NamedObject] = {}
    for n, shape in enumerate(shapes):
        entry = f"shapes[{n}]"
        shape = shape if isinstance(shape, dict) else {}
        label, kind, group = shape.get("label"), shape.get("shape_type") or "polygon", shape.get("group_id")
        points: Any = shape.get("points")
        message = _shape_problem(label, kind, points)
        if message or not isinstance(label, str):
            problems.append(Problem(str(file), entry, message, 1))
            continue
        box, mask = _extent(kind, points)
        first = group_of.get((label, group)) if isinstance(group, int | str) else None
        if first is not None:
            sides = zip(first.box, box, (min, min, max, max), strict=True)
            first.box = tuple(choose(a, b) for a, b, choose in sides)  # type: ignore[assignment]  # four of them
            first.mask = [*first.mask, *mask] if isinstance(first.mask, list) and isinstance(mask, list) else None
            continue
        found.append(NamedObject(label, entry, box, mask))
        if isinstance(group, int | str):
            group_of[label, group] = found[-1]
    return found


def _shape_problem(label: Any, kind: Any, points: Any) -> str:
    if not isinstance(label, str) or not label.strip():
        return "shape without a label"
    least = {"rectangle": 2, "circle": 2, "polygon": 3}.get(str(kind))
    if least is None:
        return f"shape_type without a box: {kind!r:.40}"
    if not isinstance(points, list) or len(points) < least or (least == 2 and kind == "circle" and len(points) != 2):
        return f"wrong number of points: expected {least}"
    return next(filter(None, (number_problem(point, 2) for point in points)), "")


def _extent(kind: str, points: list[list[float]]) -> tuple[tuple[float, float, float, float], Mask | None]:
    xs, ys = zip(*points, strict=True)
    if kind == "circle":  # centre, and a point on it
        radius = math.dist(*points)
        return (xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius), None
    box = (min(xs), min(ys), max(xs), max(ys))
    return box, [[side for point in points for side in point]] if kind == "polygon" else None
