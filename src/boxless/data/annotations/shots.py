"""Few-shot labels: K boxes of each class, drawn with a seed."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.errors import UserError


def draw_shots(data: LabelledData, shots: int, seed: int, ignore: bool) -> LabelledData:
    """The images with `shots` boxes of each class, drawn with `seed`.

    The boxes of a class come from different images as long as there are any (CD-FSOD's one box an image), then a
    second one from each, and so on: the draw for K holds the draw for K - 1, and a class has fewer than K only if
    there are no more. Crowds are never drawn.

    Args:
        data: labels to draw from.
        shots: K, boxes per class.
        seed: seed of the draw.
        ignore: mark the other objects of these images as ignored; otherwise they become background (TFA, CD-FSOD).

    Raises:
        UserError: fewer than one shot, or labels without boxes.
    """
    if shots < 1:
        raise UserError(f"shots: {shots}; expected 1 or more boxes per class")
    if not any(len(image.boxes) for image in data.images):
        raise UserError(f"shots: {shots}; counts boxes, and {data.origin} has none")
    drawn: dict[int, list[int]] = {}
    for label in range(len(data.classes)):
        for row, place in _order(data, label, seed)[:shots]:
            drawn.setdefault(row, []).append(place)
    return replace(data, images=tuple(_only(data.images[row], drawn[row], ignore) for row in sorted(drawn)))


def _order(data: LabelledData, label: int, seed: int) -> list[tuple[int, int]]:
    """All objects of a class as (image, place in it), in the order in which they are drawn."""
    random = np.random.default_rng((seed, 3, label))
    found = []
    for row in random.permutation(len(data)).tolist():
        image = data.images[row]
        places = random.permutation(np.flatnonzero((image.labels == label) & ~image.crowd)).tolist()
        found += [(turn, row, place) for turn, place in enumerate(places)]
    return [(row, place) for _, row, place in sorted(found, key=lambda entry: entry[0])]


def _only(image: LabelledImage, places: list[int], ignore: bool) -> LabelledImage:
    """An image of which only some objects are to be learned."""
    other = np.ones(len(image.boxes), bool)
    other[places] = False
    if ignore:
        return replace(image, ignored=other & ~image.crowd)
    return replace(image, crowd=image.crowd | other)


def boxes_to_learn(data: LabelledData) -> list[dict[str, Any]]:
    """Image id, class and box (xyxy, source px) of every object that is learned."""
    return [
        {"image_id": image.image_id, "class": data.classes[label], "box": [round(float(side), 3) for side in box]}
        for image in data.images
        for box, label in zip(image.boxes[image.learned], image.labels[image.learned], strict=True)
    ]


def boxes_digest(boxes: list[dict[str, Any]]) -> str:
    """SHA-256 of boxes, a line of id, class and sides each, sorted: 64 hex digits that say which boxes these are."""
    lines = sorted(
        "\t".join([str(box["image_id"]), box["class"], *(f"{side:.3f}" for side in box["box"])]) for box in boxes
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def objects_per_class(data: LabelledData) -> dict[str, int]:
    """The number of objects to learn from, for each class."""
    counts = Counter(int(label) for image in data.images for label in image.labels[image.learned])
    return {name: counts[label] for label, name in enumerate(data.classes)}
