"""Images whose objects still carry names, as VOC and most labelling tools write them, to `LabelledData`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boxless.data.annotations.types import PIXEL_LIMIT, LabelledData, LabelledImage, Mask, Problem, fit_boxes
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError


@dataclass
class NamedObject:
    """An object: its class, what messages call it, its box (x1, y1, x2, y2), source px, and mask."""

    name: str
    entry: str
    box: tuple[float, float, float, float]
    mask: Mask | None = None
    crowd: bool = False


@dataclass
class NamedImage:
    """An image file with its labels' file, its size in px, and its objects."""

    path: Path
    labels: Path
    image_id: str
    width: int
    height: int
    objects: list[NamedObject] = field(default_factory=list)


def to_data(
    origin: str,
    images: Sequence[NamedImage],
    listed: Sequence[str] | None,
    classes: Sequence[str] | None,
    problems: list[Problem],
    difficult: bool = False,
) -> LabelledData:
    """Number the names of classes, and clip the boxes.

    Args:
        origin: the labels, for people.
        images: the usable images.
        listed: all classes, in order; None: those that are found, sorted.
        classes: classes to use instead, if any; objects of others are left out.
        problems: those found so far.
        difficult: see `LabelledData`.

    Raises:
        UserError: no image is left.
    """
    if not images:
        raise UserError(f"{origin}: no images left{f'; first: {problems[0]}' if problems else ''}")
    found = sorted({each.name for image in images for each in image.objects})
    known = list(listed) + [name for name in found if name not in listed] if listed is not None else found
    kept = tuple(classes) if classes is not None else tuple(dict.fromkeys(known))
    label_of = {name: k for k, name in enumerate(kept)}
    unwanted = Counter(each.name for image in images for each in image.objects if each.name not in label_of)
    problems = list(problems)
    for name, count in unwanted.items():
        problems.append(Problem(origin, f"class {name}", f"class is not among the given classes: {count} objects"))
    labelled = tuple(_labelled(image, label_of, problems) for image in images)
    ids = tuple(range(1, len(kept) + 1))
    return LabelledData(origin, kept, ids, labelled, tuple(problems), difficult=difficult)


def _labelled(image: NamedImage, label_of: dict[str, int], problems: list[Problem]) -> LabelledImage:
    objects = [each for each in image.objects if each.name in label_of]
    boxes = np.array([each.box for each in objects], np.float64).reshape(-1, 4)
    sizes = np.tile(np.array([image.width, image.height], np.float64), (len(boxes), 1))
    clipped, keep, messages = fit_boxes(boxes, sizes)
    problems += [Problem(str(image.labels), objects[n].entry, words, int(not keep[n])) for n, words in messages]
    masks = tuple(each.mask for each in objects)
    return LabelledImage(
        image.path,
        image.image_id,
        image.width,
        image.height,
        clipped,
        np.array([label_of[each.name] for each in objects], np.int64),
        np.array([each.crowd for each in objects], bool),
        masks if any(masks) else None,
    ).only(keep)


def size_of(
    file: Path, size: Sequence[object], labels: Path, problems: list[Problem], lost: int
) -> tuple[int, int] | None:
    """The size that labels say of their image, else that of its file; None, and a problem, if it cannot be read."""
    sides = [int(side) for side in size if isinstance(side, int | float) and 1 <= side <= PIXEL_LIMIT]
    if len(sides) == 2 and sides[0] * sides[1] <= PIXEL_LIMIT:
        return sides[0], sides[1]
    try:
        return image_size(file)
    except BadImage as error:
        problems.append(Problem(str(labels), "file", f"unreadable image file: {error}", lost))
        return None
