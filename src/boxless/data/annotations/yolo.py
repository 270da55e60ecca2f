"""YOLO (data.yaml or classes.txt, one .txt per image) to `LabelledData`; polygons become masks and their boxes."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxless.data.annotations.locate import ImageFiles
from boxless.data.annotations.types import (
    OBJECT_LIMIT,
    SPLITS,
    TOO_MANY,
    LabelledData,
    LabelledImage,
    Mask,
    Problem,
    Role,
    fit_boxes,
)
from boxless.data.images import EXTENSIONS, BadImage, image_size
from boxless.errors import UserError
from boxless.untrusted import is_folder, is_there, parse_yaml

NAMES = ("classes.txt", "obj.names")  # a class a line: of LabelImg and Label Studio; of Darknet and CVAT
_ROUNDING = 1e-3  # values this far outside 0..1 are rounding


def recognises(path: Path) -> bool:
    """Return whether a path is a .yaml file or a list of classes, or a folder with some."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml") or path.name in NAMES
    return bool(_settings(path))


def read(
    path: Path, split: str | None, role: Role, images: Path | None = None, classes: Sequence[str] | None = None
) -> LabelledData:
    """Read the `split` (train, val, test) of a data.yaml, or of the one in a folder; by default that of the role.

    An image without a label file has no objects. Without a data.yaml, classes.txt has the names and folders the splits.

    `images`: folder of the images instead of the one in the file. Classes are `names`, or `classes`; category ids are
    1..n. Of pose labels (`kpt_shape`) the boxes are read. Broken lines are left out and listed.

    Raises:
        UserError: the file is no data.yaml, lacks the split, or no image is usable.
    """
    path = _settings_file(path)
    config = load_config(path) if path.name not in NAMES else _found_config(path, split, role)
    split = split or next((name for name in SPLITS[role] if config.get(name)), role)
    names = _names(path, config)
    pose_fields = _pose_fields(path, config)
    problems = [Problem(str(path), f"class {k}", "empty category name") for k, name in names.items() if not name]
    found = tuple(names.get(k, "") for k in range(max(names) + 1)) if classes is None else tuple(classes)
    index = {name: k for k, name in enumerate(found) if name}
    label_of = {k: index.get(name, -1) for k, name in names.items() if name}
    files = _files([images] if images else _places(path, config, split))
    if not files:
        raise UserError(f"{path}: no images in split '{split}'; looked for {' '.join(EXTENSIONS)}")
    if not any(is_there(label_file(file)) for file in files):
        raise UserError(f"{path}: no label files for split '{split}'; expected e.g. {label_file(files[0])}")
    files = _of_one_name(files, problems)
    unwanted: Counter[int] = Counter()
    ids = _image_ids(files)
    labelled = [
        _read_image(file, number, label_of, pose_fields, problems, unwanted)
        for file, number in zip(files, ids, strict=True)
    ]
    kept = tuple(image for image in labelled if image is not None)
    if not kept:
        raise UserError(f"{path}: no images left of {len(files)} in split '{split}'; first: {problems[0]}")
    for k, count in unwanted.items():
        message = f"class is not among the given classes: {count} objects"
        problems.append(Problem(str(path), f"class {k} ({names[k]})", message))
    return LabelledData(f"{path}:{split}", found, tuple(range(1, len(found) + 1)), kept, tuple(problems))


def _settings_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = _settings(path)
    if len(files) > 1:
        raise UserError(f"{path}: several YAML files: {', '.join(file.name for file in files[:5])}; name one")
    return files[0]


def _settings(folder: Path) -> list[Path]:
    """The files that may say what a folder's labels are: data.yaml, else any .yaml, else a list of classes."""
    if (folder / "data.yaml").is_file():
        return [folder / "data.yaml"]
    names = [place / name for place in (folder, folder / "labels") for name in NAMES]
    return sorted(folder.glob("*.y*ml")) or [file for file in names if file.is_file()][:1]


def _found_config(path: Path, split: str | None, role: Role) -> dict[str, Any]:
    """The data.yaml that would describe a list of classes and the folders beside it."""
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of classes: {error}") from error
    root = path.parent.parent if path.parent.name == "labels" else path.parent
    words = (split,) if split else (*SPLITS[role], *(("valid",) if role == "val" else ()))
    tries = [place for word in words for place in (f"images/{word}", f"{word}/images", word, f"{word}.txt")]
    place = next((place for place in (*tries, "images") if (root / place).exists()), ".")
    if split and place not in tries:
        raise UserError(f"{path}: no split '{split}'; looked for {', '.join(tries)}")
    return {"names": names, "path": str(root.absolute()), split or role: place}


def load_config(path: Path) -> dict[str, Any]:
    """Return the data.yaml as a dict; raises `UserError` if it is not YAML or has no `names`."""
    try:
        config = parse_yaml(path.read_text(encoding="utf-8-sig"), as_text="names")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {str(error)[:120]}") from error
    if not isinstance(config, dict) or not config.get("names"):
        raise UserError(f"{path}: not a YOLO data file: lacks the key 'names' (class names by index)")
    return config


def label_file(image: Path) -> Path:
    """Return the .txt of an image: the last folder `images` of its path becomes `labels`; or it lies beside it."""
    parts = list(image.parts)
    for n in range(len(parts) - 2, -1, -1):
        if parts[n] == "images":
            parts[n] = "labels"
            break
    file, beside = Path(*parts[:-1], f"{Path(parts[-1]).stem}.txt"), image.with_suffix(".txt")
    return beside if is_there(beside) and not is_there(file) else file


def _names(path: Path, config: dict[str, Any]) -> dict[int, str]:
    names = config["names"]
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else []))
    if not pairs or not all(type(k) is int and 0 <= k < 100_000 for k, _ in pairs):
        raise UserError(f"{path}: 'names' must be a list of class names or map 0, 1, ... to them")
    return {k: "" if name is None else str(name).strip() for k, name in pairs}


def _pose_fields(path: Path, config: dict[str, Any]) -> int | None:
    """Return how many fields a line of pose labels has; None if the labels are boxes or polygons."""
    shape = config.get("kpt_shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and [type(n) for n in shape] == [int, int] and shape[0] > 0 and shape[1] in (2, 3)):
        raise UserError(f"{path}: kpt_shape: {shape!r:.40}; expected [number of keypoints, 2 or 3 values of each]")
    return 5 + int(shape[0] * shape[1])


def _places(path: Path, config: dict[str, Any], split: str) -> list[Path]:
    """Return the folders or lists that the split names, resolved."""
    value = config.get(split)
    entries = [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry]
    if not entries:
        have = ", ".join(key for key in ("train", "val", "test") if config.get(key))
        raise UserError(f"{path}: no split '{split}'; it has: {have or 'none'}")
    root = path.parent / str(config.get("path") or ".")
    roots = [root, path.parent]  # `path` often names a folder of the machine that the file was made on
    places = []
    for entry in entries:
        # Roboflow writes ../train/images though the folder lies beside the file
        tries = [base / name for base in roots for name in (entry, entry.removeprefix("../"))]
        place = next((place for place in tries if is_there(place) or is_folder(place)), None)
        if place is None:
            raise UserError(f"{path}: split '{split}': no such file or folder: {tries[0]}")
        places.append(place)
    return places


def _files(places: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += sorted(f for f in _below(place) if f.suffix.lower() in EXTENSIONS and not f.name.startswith("."))
        elif place.suffix.lower() in EXTENSIONS:
            files.append(place)
        else:
            try:
                lines = place.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{place}: cannot be read as a folder or a list of images: {error}") from error
            names = [line.strip() for line in lines if line.strip()]
            listed = ImageFiles(names, [place.parent, place.parent / "images", place.parent])
            files += [listed.find(name) or Path(listed.expected(name)) for name in names]
    return list(dict.fromkeys(files))


def _below(root: Path) -> Iterator[Path]:
    """Yield all files below a folder; links are followed, and no folder is entered twice."""
    entered: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in entered:
            folders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        folders.sort()  # of two links to one folder the first counts
        yield from (Path(folder, name) for name in names)


def _of_one_name(files: list[Path], problems: list[Problem]) -> list[Path]:
    """The files without those that share their label file: a.jpg and a.png, of which it may be either's."""
    count = Counter(map(label_file, files))
    for source, shared in count.items():
        if shared > 1:
            names = ", ".join(file.name for file in files if label_file(file) == source)
            message = f"image files of one name: {names:.200}; keep one of them"
            problems.append(Problem(str(source), "file", message, 1))
    return [file for file in files if count[label_file(file)] == 1]


def _image_ids(files: Sequence[Path]) -> Sequence[int | str]:
    """Return the numbers that files are named by (as in COCO), else their names, else their paths: all different."""
    stems = [file.stem for file in files]
    if all(stem.isdecimal() and len(stem) < 19 for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return stems if len(set(stems)) == len(stems) else [file.as_posix() for file in files]


def _read_image(
    file: Path,
    image_id: int | str,
    label_of: dict[int, int],
    pose_fields: int | None,
    problems: list[Problem],
    unwanted: Counter[int],
) -> LabelledImage | None:
    source = label_file(file)
    try:
        lines = _lines(source)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(source), "file", f"annotation file cannot be read: {error}", 1))
        return None
    try:
        width, height = image_size(file)
    except BadImage as error:
        kind = "unreadable image file" if is_there(file) else "missing image file"
        problems.append(Problem(str(source), "file", f"{kind}: {error}", len(lines)))
        return None
    labels: list[int] = []
    boxes, masks, entries = [], [], []
    for n, line in lines:
        entry = f"line {n}"
        parsed = _parse(line, label_of, pose_fields)
        if isinstance(parsed, str):
            problems.append(Problem(str(source), entry, parsed, 1))
            continue
        label, values = parsed
        if label < 0:
            unwanted[int(float(line.split()[0]))] += 1
            continue
        if len(labels) == OBJECT_LIMIT:  # before the rest is parsed
            problems.append(Problem(str(source), entry, TOO_MANY, len(lines)))
            return None
        values = values * np.tile([width, height], len(values) // 2)
        labels.append(label)
        entries.append(entry)
        mask: Mask | None = None
        if len(values) == 4:
            boxes.append((*(values[:2] - values[2:] / 2), *(values[:2] + values[2:] / 2)))  # cxcywh -> xyxy
        else:
            x, y = values[::2], values[1::2]
            boxes.append((x.min(), y.min(), x.max(), y.max()))
            mask = [values.tolist()]
        masks.append(mask)
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.tile(np.array([width, height], dtype=np.float64), (len(array), 1))
    clipped, keep, box_problems = fit_boxes(array, sizes)
    problems += [Problem(str(source), entries[n], message, int(not keep[n])) for n, message in box_problems]
    return LabelledImage(
        path=file,
        image_id=image_id,
        width=width,
        height=height,
        boxes=clipped.astype(np.float32),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(keep), dtype=bool),
        masks=tuple(masks) if any(mask is not None for mask in masks) else None,
    ).only(keep)


def _lines(source: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a label file, none if there is no file; raises OSError, UnicodeDecodeError."""
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        return []
    return [(n, line) for n, line in enumerate(lines, 1) if line]


def _parse(line: str, label_of: dict[int, int], pose_fields: int | None) -> tuple[int, np.ndarray] | str:
    """Return label (-1: not wanted) and normalised values (4 of a box, or a polygon's), or what is wrong."""
    fields = line.split()
    if pose_fields:
        if len(fields) != pose_fields:
            return f"wrong number of fields: expected {pose_fields} by kpt_shape, found {len(fields)}"
        fields = fields[:5]
    elif len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        return f"wrong number of fields: expected class and 4 numbers or 3 or more points, found {len(fields)}"
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return f"not a number: {line:.40}"
    if not all(map(math.isfinite, values)):
        return f"coordinate is not finite: {line:.40}"
    if not values[0].is_integer() or int(values[0]) not in label_of:
        return f"class index out of range: {fields[0]}, known are 0..{max(label_of, default=0)}"
    if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in values[1:]):
        return f"values not in 0..1: {line:.60}"
    return label_of[int(values[0])], np.array(values[1:])
