"""Supervisely (meta.json; img/ and ann/ in each data set) to `LabelledData`; polygons become masks and their boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxless.data.annotations import tools
from boxless.data.annotations.named import NamedImage, NamedObject, size_of, to_data
from boxless.data.annotations.types import LabelledData, Problem, Role, number_problem, role_folder
from boxless.errors import UserError
from boxless.untrusted import is_there


def recognises(path: Path) -> bool:
    """Return whether a folder is a project, a data set in one, or one without its project."""
    return bool(_sets(path))


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read a data set, or of a project the one of the split, or its only one.

    `images`: folder of the images, else img/. Classes are those of the project's meta.json, or `classes`. Shapes other
    than rectangles and polygons are left out and listed.

    Raises:
        UserError: several data sets of which none is the split's, or no image is left.
    """
    folder, sets = role_folder(path, split, role), _sets(path)
    if folder not in sets and len(sets) > 1:
        have = ", ".join(each.name for each in sets[:5])
        raise UserError(f"{path}: a project of Supervisely with the data sets {have}; name one: {sets[0]}")
    folder = folder if folder in sets else sets[0]
    meta = next((place / "meta.json" for place in (folder, folder.parent) if is_there(place / "meta.json")), None)
    content = None if meta is None else tools.load_small(meta)
    listed = content.get("classes") if isinstance(content, dict) else None
    titles = [each.get("title") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else None
    names = None if titles is None else [title for title in titles if isinstance(title, str) and title]
    problems: list[Problem] = []
    files = sorted((folder / "ann").glob("*.json"))
    read_all = [_read_image(file, images or folder / "img", problems) for file in files]
    return to_data(str(folder), [image for image in read_all if image is not None], names, classes, problems)


def _sets(path: Path) -> list[Path]:
    places = [path, *sorted(path.glob("*"))] if path.is_dir() else []
    return [place for place in places if (place / "ann").is_dir() and (place / "img").is_dir()]


def _read_image(file: Path, folder: Path, problems: list[Problem]) -> NamedImage | None:
    content = tools.load_small(file)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        problems.append(Problem(str(file), "file", "annotation file without Supervisely's 'objects'", 1))
        return None
    image, count = folder / file.stem, len(content["objects"])
    if not is_there(image):
        problems.append(Problem(str(file), "file", f"missing image file: {image}", count))
        return None
    stated = content.get("size")
    sides = (stated.get("width"), stated.get("height")) if isinstance(stated, dict) else ()
    size = size_of(image, sides, file, problems, count)
    objects = []
    for n, each in enumerate(content["objects"]):
        found = _object(each if isinstance(each, dict) else {}, f"objects[{n}]")
        if isinstance(found, str):
            problems.append(Problem(str(file), f"objects[{n}]", found, 1))
        else:
            objects.append(found)
    return None if size is None else NamedImage(image, file, Path(file.stem).stem, *size, objects)


def _object(each: dict[str, Any], entry: str) -> NamedObject | str:
    """The object, or what is wrong with it."""
    name, kind, places = each.get("classTitle"), each.get("geometryType"), each.get("points")
    points = places.get("exterior") if isinstance(places, dict) else None
    if not isinstance(name, str) or not name:
        return "object without a classTitle"
    if kind not in ("rectangle", "polygon"):
        return f"geometryType without a box, export COCO with bitmaps: {kind!r:.40}"
    if not isinstance(points, list) or len(points) < (2 if kind == "rectangle" else 3):
        return "too few points"
    if message := next(filter(None, (number_problem(point, 2) for point in points)), ""):
        return message
    xs, ys = zip(*points, strict=True)
    mask = [[side for point in points for side in point]] if kind == "polygon" else None
    return NamedObject(name, entry, (min(xs), min(ys), max(xs), max(ys)), mask)
