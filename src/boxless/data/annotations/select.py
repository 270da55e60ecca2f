"""Labelled data put together of several sets, and the images of it that a run learns from."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.errors import UserError
from boxless.untrusted import parse_json

Choice = Literal["random", "first"]


def joined(parts: Sequence[LabelledData], union: bool) -> LabelledData:
    """Several sets as one: the classes of the first, or with `union` all that any of them has, sorted.

    Image ids stay as they are where they differ from set to set, else they become SET/ID, SET counted from 1.

    Raises:
        UserError: an image is in two sets, or their classes, keypoints or frequencies do not agree.
    """
    classes = tuple(sorted({name for part in parts for name in part.classes})) if union else parts[0].classes
    for part in parts[1:]:
        if not union and set(part.classes) != set(classes):
            differing = sorted(set(part.classes) ^ set(classes))
            raise UserError(
                f"{part.origin}: its classes are not those of {parts[0].origin}; only one of them has: "
                f"{', '.join(differing[:5])}"
            )
        if part.skeleton != parts[0].skeleton:
            raise UserError(f"{part.origin}: its keypoints are not those of {parts[0].origin}")
    _refuse_doubles(parts)
    ids = Counter(image.image_id for part in parts for image in part.images)
    keep_ids = max(ids.values(), default=1) == 1
    images = []
    for number, part in enumerate(parts, 1):
        index = np.array([classes.index(name) for name in part.classes], np.int64)
        for image in part.images:
            renumbered = replace(
                image,
                image_id=image.image_id if keep_ids else f"{number}/{image.image_id}",
                labels=index[image.labels] if len(image.labels) else image.labels,
                negative=tuple(int(index[label]) for label in image.negative),
                not_exhaustive=tuple(int(index[label]) for label in image.not_exhaustive),
            )
            images.append(renumbered)
    known = dict(zip(parts[0].classes, parts[0].category_ids, strict=True))
    category_ids = tuple(range(1, len(classes) + 1)) if union else tuple(known[name] for name in classes)
    return LabelledData(
        " + ".join(part.origin for part in parts),
        classes,
        category_ids,
        tuple(images),
        tuple(problem for part in parts for problem in part.problems),
        parts[0].skeleton,
        difficult=all(part.difficult for part in parts),
        frequencies=_frequencies(parts, classes),
    )


def _frequencies(parts: Sequence[LabelledData], classes: Sequence[str]) -> tuple[str, ...]:
    """LVIS's group of each class; nothing if one of the sets is not LVIS's, for then not all of it is."""
    if not all(part.frequencies for part in parts):
        return ()
    known: dict[str, tuple[str, str]] = {}
    for part in parts:
        for name, group in zip(part.classes, part.frequencies, strict=True):
            if not group:
                continue
            first, origin = known.setdefault(name, (group, part.origin))
            if first != group:
                raise UserError(
                    f"{part.origin}: class {name} has frequency {group}, but {first} in {origin}; fix one of the files"
                )
    return tuple(known[name][0] if name in known else "" for name in classes)


def _refuse_doubles(parts: Sequence[LabelledData]) -> None:
    seen: dict[Path, str] = {}
    for part in parts:
        for image in part.images:
            path = image.path.absolute()
            if path in seen:
                raise UserError(f"{image.path}: is in both {seen[path]} and {part.origin}; name sets without overlap")
        seen |= {image.path.absolute(): part.origin for image in part.images}


def chosen_rows(data: LabelledData, choice: Choice, fraction: float, count: int | None, seed: int) -> list[int]:
    """The rows of a share of the images, or of `count` of them, in ascending order.

    random: the first ones of an order drawn from `seed`, so that larger shares hold smaller ones. first: as SoCo's
    code has it (hologerry/detectron2, data/build.py), the first ones by ascending image id of those that have objects;
    a share of these is rounded down.

    Raises:
        UserError: a share outside 0..1, or more images than there are.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"label_fraction: {fraction}; expected more than 0 and at most 1")
    if choice == "first":
        rows = [row for row, image in enumerate(data.images) if image.class_map or (~image.crowd).any()]
        rows.sort(key=lambda row: _as_key(data.images[row].image_id))
    else:
        rows = np.random.default_rng((seed, 2)).permutation(len(data)).tolist()
    share = fraction * len(rows)
    wanted = count if count is not None else max(1, int(share) if choice == "first" else round(share))
    if not 0 < wanted <= len(rows):
        raise UserError(f"label_count: {wanted}; expected 1 to {len(rows)}, the labelled images in {data.origin}")
    return sorted(rows[:wanted])


def _as_key(image_id: int | str) -> tuple[int, int, str]:
    return (0, image_id, "") if isinstance(image_id, int) else (1, 0, image_id)


def listed_rows(data: LabelledData, file: Path) -> list[int]:
    """The rows of the images that a file names: a run's labels.json, COCO JSON, or an image id or file name per line.

    Of COCO's images the file name decides, because a part of a data set may have new ids.

    Raises:
        UserError: no such file, nothing in it, or names that the data do not have or have several times.
    """
    names = _names(file)
    rows = _Rows(data)
    found = [rows.named(name) if is_file else rows.of(name) for name, is_file in names]
    missing = [name for (name, _), some in zip(names, found, strict=True) if not some]
    if missing:
        raise UserError(
            f"label_list {file}: {len(missing)} of its {len(names)} images are not in {data.origin}, as {missing[0]}"
        )
    ambiguous = next((name for (name, _), some in zip(names, found, strict=True) if len(some) > 1), None)
    if ambiguous is not None:
        raise UserError(f"label_list {file}: {ambiguous} is the name of several images; give their ids, one per line")
    return sorted({row for some in found for row in some})


class _Rows:
    """Finds the rows of images by id and by file name."""

    def __init__(self, data: LabelledData) -> None:
        self.paths = [Path(os.path.abspath(image.path)) for image in data.images]
        self.root = Path(os.path.commonpath({path.parent for path in self.paths}))
        self.by_id: dict[str, list[int]] = {}
        self.by_name: dict[str, list[int]] = {}
        for row, (image, path) in enumerate(zip(data.images, self.paths, strict=True)):
            self.by_id.setdefault(str(image.image_id), []).append(row)
            self.by_name.setdefault(path.name, []).append(row)

    def of(self, name: str) -> list[int]:
        """The rows of the images that have this id or file name."""
        return sorted({*self.by_id.get(name, ()), *self.named(name)})

    def named(self, name: str) -> list[int]:
        """The rows of the images of this file name; the folders of another machine are passed over."""
        parts = Path(name).parts
        alike = self.by_name.get(Path(name).name, [])
        exact = [row for row in alike if self.paths[row] == self.root / name]
        return exact or [row for row in alike if self.paths[row].parts[-len(parts) :] == parts] or alike


def _names(file: Path) -> list[tuple[str, bool]]:
    """Return what a file says of each image, and whether that is for sure the name of its file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            content = parse_json(text)
            if isinstance(content, dict) and content.get("choice") == "shots":
                raise UserError(
                    f"label_list {file}: chooses boxes, not images; repeat its draw with --shots "
                    f"{content.get('shots')} --label_seed {content.get('seed')}"
                )
            images = content["images"] if isinstance(content, dict) else content
            names = [_name(image) if isinstance(image, dict) else (str(image), False) for image in images]
        else:
            names = [(line.strip(), False) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"label_list {file}: expected a run's labels.json or an image id or file name per line ({error})"
        ) from error
    if not names:
        raise UserError(f"label_list {file}: names no image")
    return names


def _name(image: dict[str, Any]) -> tuple[str, bool]:
    name = image.get("file_name")
    return (name, True) if isinstance(name, str) and name else (str(image["id"]), False)


def labels_digest(images: Iterable[LabelledImage]) -> str:
    """16 hex digits that depend on the images' ids, boxes and labels."""
    sha = hashlib.sha256()
    for image in images:
        sha.update(f"{image.image_id}\n".encode())
        for values in (image.boxes, image.labels, image.crowd):
            sha.update(values.tobytes())
    return sha.hexdigest()[:16]


def targets_digest(data: LabelledData, targets: str) -> str:
    """16 hex digits that depend on what a detector learns beside boxes: names, masks, points, class maps."""
    points = targets == "keypoints"
    sha = hashlib.sha256(repr((data.classes, data.skeleton if points else None)).encode())
    for image in data.images:
        if targets == "masks":
            sha.update(repr(image.masks).encode())
        if points and image.keypoints is not None:
            sha.update(image.keypoints.tobytes())
        if image.class_map is not None:
            try:
                sha.update(image.class_map.read_bytes())
            except OSError:  # said when it is to be learned from
                sha.update(b"unreadable")
    return sha.hexdigest()[:16]


def fingerprint(images: Iterable[LabelledImage]) -> str:
    """SHA-256 of the image ids, sorted as text, a line each: 64 hex digits that say which images these are."""
    lines = sorted(str(image.image_id) for image in images)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
