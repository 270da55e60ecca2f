"""Labelled images in memory, the same for every format, and the checks that every format shares."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from boxless.data.annotations.keypoints import Skeleton, to_coco
from boxless.errors import UserError
from boxless.untrusted import printable

Mask = list[list[float]] | dict[str, Any]  # polygons, flat x1 y1 x2 y2 ... in source px; or a COCO RLE

COORDINATE_LIMIT = 1e7  # px; beyond this float32 is coarser than a pixel
PIXEL_LIMIT = 200_000_000  # of an image; larger ones are not read, whatever their labels say of them
OBJECT_LIMIT = 10_000  # of an image; detectors compare all with all their boxes, which no memory has room for
LOSS_LIMIT = 0.1  # share of the objects that may be left out before a run stops
TOO_MANY = f"too many objects, image left out: expected at most {OBJECT_LIMIT:,}"
Role = Literal["train", "val"]
SPLITS: dict[str, tuple[str, ...]] = {"train": ("train", "trainval"), "val": ("val", "test")}
"""The splits that a role reads, in order of preference."""
_NUMBERS = frozenset((int, float))
_FOLDERS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "validation", "test", "testing")}


@dataclass(frozen=True)
class Problem:
    """A broken entry that was skipped or repaired; `message` is "kind: details", `lost` the objects that it cost."""

    file: str
    entry: str
    message: str
    lost: int = 0

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.entry}: {self.message}")


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image file and its N objects.

    `width`, `height`: px. `boxes`: (N, 4) float32, source px, xyxy, inside the image. `labels`: (N,) int64, index into
    the classes from 0. `crowd`: (N,) bool, objects that average precision ignores. `masks`: None, or per object COCO
    polygons, a COCO RLE or None. `keypoints`: None, or (N, K, 3) float32, source px, as `keypoints.from_coco` has them.
    `class_map`: None, or an image file of the pixels' classes, for semantic segmentation; there are then no objects.
    `ignored`: None, or (N,) bool, objects that a detector neither learns nor takes for background.
    `areas`: None, or (N,) float32, px^2, the area that COCO's labels say of each object; NaN where they do not.

    Of LVIS: `negative`: classes that were looked for and are not there; `not_exhaustive`: classes of which not every
    object is labelled. Of all other classes without an object here nothing is known.
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    masks: tuple[Mask | None, ...] | None = None
    keypoints: np.ndarray | None = None
    class_map: Path | None = None
    negative: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()
    ignored: np.ndarray | None = None
    areas: np.ndarray | None = None

    def only(self, keep: np.ndarray) -> "LabelledImage":
        """Return the image with the objects at `keep`, (N,) bool."""
        of_objects = ("boxes", "labels", "crowd", "keypoints", "ignored", "areas")
        arrays = {name: values[keep] for name in of_objects if (values := getattr(self, name)) is not None}
        masks = None if self.masks is None else tuple(mask for mask, ok in zip(self.masks, keep, strict=True) if ok)
        return replace(self, masks=masks, **arrays)

    @property
    def learned(self) -> np.ndarray:
        """Objects to learn from, (N,) bool: neither crowds nor ignored."""
        learned: np.ndarray = ~self.crowd if self.ignored is None else ~self.crowd & ~self.ignored
        return learned


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Labelled images of one split. `category_ids[k]` is the COCO category id of class k, `classes[k]` its name.

    `skeleton`: the keypoints of all classes that have any. `difficult`: crowd objects are single ones that are hard to
    tell (VOC), not groups. `frequencies`: of LVIS, per class r, c or f (rare, common, frequent) or "" where unknown.
    """

    origin: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[LabelledImage, ...]
    problems: tuple[Problem, ...] = ()
    skeleton: Skeleton = Skeleton()  # noqa: RUF009 (frozen)
    difficult: bool = False
    frequencies: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_masks(self) -> bool:
        """True if any object has a mask."""
        return any(mask is not None for image in self.images for mask in image.masks or ())

    @property
    def has_keypoints(self) -> bool:
        """True if any object has a keypoint."""
        return any(image.keypoints is not None and image.keypoints[..., 2].any() for image in self.images)

    def keypoints_of(self, image: LabelledImage) -> np.ndarray:
        """The keypoints of an image's objects, (N, K, 3); none is labelled where the image has none."""
        if image.keypoints is not None:
            return image.keypoints
        return np.zeros((len(image.boxes), len(self.skeleton.names), 3), np.float32)

    def subset(self, rows: Iterable[int]) -> "LabelledData":
        """Return the images at `rows`, in their order; classes and problems stay."""
        return replace(self, images=tuple(self.images[i] for i in rows))

    def with_difficult(self) -> "LabelledData":
        """Return the data with VOC's difficult objects as ordinary ones."""
        if not self.difficult:
            return self
        images = tuple(replace(image, crowd=np.zeros_like(image.crowd)) for image in self.images)
        return replace(self, images=images, difficult=False)

    def as_coco(self) -> dict[str, Any]:
        """Return a COCO dict: image ids are kept if all are integers, else 1..n.

        `area` is the mask's, else what the labels say, else the box's.
        """
        keep = all(isinstance(image.image_id, int) for image in self.images)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for row, image in enumerate(self.images):
            number = image.image_id if keep else row + 1
            size = {"width": image.width, "height": image.height}
            images.append({"id": number, "file_name": image.path.as_posix(), **size, **self._looked_for(image)})
            masks = image.masks or (None,) * len(image.boxes)
            areas = [math.nan] * len(image.boxes) if image.areas is None else image.areas.tolist()
            parts = image.boxes.tolist(), image.labels.tolist(), image.crowd.tolist(), masks, areas
            points_of = self.keypoints_of(image)
            for (x1, y1, x2, y2), label, crowd, mask, given, points in zip(*parts, points_of, strict=True):
                of_box = (x2 - x1) * (y2 - y1) if math.isnan(given) else given
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": self.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": of_box if mask is None else mask_area(mask),
                    "iscrowd": int(crowd),
                }
                if self.skeleton.names:
                    annotation |= to_coco(points)
                annotations.append(annotation if mask is None else annotation | {"segmentation": mask})
        categories = [
            {"id": number, "name": name, **self.skeleton.as_coco()}
            for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        for category, frequency in zip(categories, self.frequencies, strict=False):
            category["frequency"] = frequency
        return {"images": images, "annotations": annotations, "categories": categories}

    def _looked_for(self, image: LabelledImage) -> dict[str, list[int]]:
        if not self.frequencies:
            return {}
        parts = {"neg_category_ids": image.negative, "not_exhaustive_category_ids": image.not_exhaustive}
        return {key: [self.category_ids[label] for label in labels] for key, labels in parts.items()}


def role_folder(root: Path, split: str | None, role: Role) -> Path:
    """Return the folder of a split below `root`, as Roboflow has them (train, valid, test), else `root` itself."""
    names = (split,) if split else _FOLDERS[role]
    return next((root / name for name in names if (root / name).is_dir()), root)


def fit_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Clip boxes (N, 4) float64, source px, xyxy, to their images' `sizes` (N, 2) = (W, H).

    Returns the clipped boxes (N, 4) float32, which to keep (N,) bool (those with area, inside the image), and
    (row, message) of each that is not kept or reached out of its image by more than a pixel; less is rounding.
    """
    clipped = np.clip(boxes, 0, np.concatenate([sizes, sizes], axis=1)).astype(np.float32)  # as they are kept
    has_area = np.all(boxes[:, 2:].astype(np.float32) > boxes[:, :2].astype(np.float32), axis=1)
    keep = has_area & np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    moved = np.any(np.abs(clipped - boxes) > 1, axis=1)
    problems = []
    for n in np.flatnonzero(~keep | moved).tolist():
        x1, y1, x2, y2 = boxes[n]
        where = f"{x1:g} {y1:g} {x2:g} {y2:g} (x1 y1 x2 y2) in an image of {sizes[n, 0]:g} x {sizes[n, 1]:g}"
        if keep[n]:
            problems.append((n, f"box reaches out of the image, clipped: {where}"))
        elif has_area[n]:
            problems.append((n, f"box outside the image: {where}"))
        else:
            problems.append((n, f"box without area: {x2 - x1:g} x {y2 - y1:g} px"))
    return clipped, keep, problems


def number_problem(values: Any, count: int) -> str:
    """Say why `values` is not a list of `count` ordinary numbers; empty if it is."""
    if type(values) is not list or len(values) != count:
        found = f"has {len(values)}" if type(values) is list else f"is {type(values).__name__}"
        return f"wrong number of coordinates: expected {count}, {found}"
    if _NUMBERS.issuperset(map(type, values)) and min(values) > -COORDINATE_LIMIT and max(values) < COORDINATE_LIMIT:
        total = sum(values)
        if total == total:  # not NaN, which min and max may step over; a million polygons pass here
            return ""
    for value in values:
        if type(value) is not float and type(value) is not int:
            return f"coordinate is not a number: {value!r:.40}"
        if not -COORDINATE_LIMIT < value < COORDINATE_LIMIT:
            return f"coordinate is not finite: {value!r:.40}"
    return ""


def mask_area(mask: Mask) -> float:
    """Return the area of a mask in px^2: the shoelace sum of its polygons or the pixels of its RLE."""
    if isinstance(mask, dict):
        return float(sum(rle_runs(mask["counts"])[1::2]))
    total = 0.0
    for polygon in mask:
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total


def rle_runs(counts: list[int] | str | bytes) -> list[int]:
    """Return the run lengths (background first) of a COCO RLE; strings as in `rleFrString` of the COCO API.

    Raises ValueError for a string that is cut off or none of run lengths.
    """
    if isinstance(counts, list):
        return counts
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode() if isinstance(counts, str) else counts:
        bits = byte - 48  # five bits of value each, then "more follows"
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("no run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return runs


def problem_report(problems: Sequence[Problem], limit: int = 20) -> str:
    """Return how many problems there are of each kind, then the first `limit` in full, one per line."""
    if not problems:
        return "no problems"
    kinds = Counter(problem.message.partition(":")[0] for problem in problems)
    lines = [f"{len(problems)} problems in the labels:"]
    lines += [f"{count:8d}  {kind}" for kind, count in kinds.most_common()]
    lines += [str(problem) for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n".join(lines)


def without_doubles(data: LabelledData) -> LabelledData:
    """Return the data with each object once: the same box and class, mask and keypoints in an image are one object."""
    images, problems = [], list(data.problems)
    for image in data.images:
        again = _repeated(image)
        images.append(image.only(~again) if again.any() else image)
        if again.any():
            message = f"objects labelled twice, left out: {int(again.sum())} of {len(again)}"
            problems.append(Problem(str(image.path), "labels", message))
    return replace(data, images=tuple(images), problems=tuple(problems)) if len(problems) > len(data.problems) else data


def _repeated(image: LabelledImage) -> np.ndarray:
    """The objects that are there before, (N,) bool."""
    keys = list(zip(image.labels.tolist(), image.crowd.tolist(), map(tuple, image.boxes.tolist()), strict=True))
    again = np.zeros(len(keys), bool)
    if len(set(keys)) == len(keys):
        return again
    seen: dict[Any, list[Any]] = {}
    masks = image.masks or (None,) * len(keys)
    points = [None] * len(keys) if image.keypoints is None else image.keypoints.tolist()
    for row, (key, *details) in enumerate(zip(keys, masks, points, strict=True)):
        alike = seen.setdefault(key, [])
        again[row] = details in alike
        if not again[row]:
            alike.append(details)
    return again


def check_losses(data: LabelledData) -> None:
    """Refuse labels that are not read as they were meant.

    Raises:
        UserError: boxes that are shares of the image, or more than a tenth of the objects left out.
    """
    boxes = [image.boxes for image in data.images if min(image.width, image.height) > 2]
    kept = sum(len(image.boxes) for image in data.images)
    within = sum(int(np.all(some[:, 2:] <= 1.01, axis=1).sum()) for some in boxes)
    if within > LOSS_LIMIT * kept:
        raise UserError(
            f"{data.origin}: {within} of {kept} boxes lie within the first pixel, as shares of the image (0..1) do; "
            "multiply them by its width and height"
        )
    costs: Counter[str] = Counter()
    for problem in data.problems:
        costs[problem.message.partition(":")[0]] += problem.lost
    lost = sum(costs.values())
    if lost > LOSS_LIMIT * (lost + kept):
        kind, count = costs.most_common(1)[0]
        first = next(problem for problem in data.problems if problem.lost and problem.message.startswith(kind))
        raise UserError(
            f"{data.origin}: {lost} of {lost + kept} objects would be left out and count as background, {count} of "
            f"them as {first.entry}: {first.message}; correct these entries or take them out"
        )
