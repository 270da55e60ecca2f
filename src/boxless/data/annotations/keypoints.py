"""Keypoints of objects: what they are called, and COCO's way to write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HALF = 0.5
"""COCO numbers the pixels that keypoints lie on; here, as for boxes, a pixel's centre is at +0.5. Detectron2 reads and
writes keypoints with the same half."""


@dataclass(frozen=True)
class Skeleton:
    """The K keypoints that objects are labelled with; none by default.

    Attributes:
        names: names of the keypoints.
        edges: pairs of keypoints, from 0, that are drawn connected.
    """

    names: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    @property
    def mirrored(self) -> list[int]:
        """Per keypoint the one that a mirrored image shows in its place: left_x and right_x change places."""
        place = {name: k for k, name in enumerate(self.names)}
        return [place.get(_other_side(name), k) for k, name in enumerate(self.names)]

    def as_coco(self) -> dict[str, list[str] | list[list[int]]]:
        """Keys of a COCO category that describe it; none if there are no keypoints."""
        edges = [[first + 1, second + 1] for first, second in self.edges]
        return {"keypoints": list(self.names), "skeleton": edges} if self.names else {}


def find_skeleton(categories: Sequence[Any]) -> tuple[Skeleton, set[int], list[tuple[int, str]]]:
    """The keypoints of the first COCO category that has any.

    Returns:
        them, the ids of the categories that have the same, and (id, message) of those that have others or broken ones.
    """
    skeleton, ids, problems = Skeleton(), set(), []
    for category in categories:
        names = category.get("keypoints") if isinstance(category, dict) else None
        if not names or type(category.get("id")) is not int:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append((category["id"], "keypoints are no list of names, left out"))
        elif len(set(names)) < len(names):
            problems.append((category["id"], "keypoints with a name twice, left out"))
        elif skeleton.names and skeleton.names != tuple(names):
            problems.append((category["id"], "keypoints other than those of another category, left out"))
        else:
            skeleton = skeleton if skeleton.names else Skeleton(tuple(names), _edges(category, len(names)))
            ids.add(category["id"])
    return skeleton, ids, problems


def _edges(category: dict[str, Any], count: int) -> tuple[tuple[int, int], ...]:
    """The category's skeleton, which counts from 1, as pairs from 0, without what is no pair of its keypoints."""
    listed = category.get("skeleton")
    pairs = [edge for edge in listed if isinstance(edge, list) and len(edge) == 2] if isinstance(listed, list) else []
    known = range(1, count + 1)
    return tuple((a - 1, b - 1) for a, b in pairs if type(a) is type(b) is int and a in known and b in known)


def from_coco(values: Sequence[float]) -> npt.NDArray[np.float32]:
    """An annotation's 3 K numbers as (K, 3): x and y in source px, and 0 not labelled, 1 hidden, 2 visible.

    x and y are 0 if a keypoint is not labelled.
    """
    points = np.asarray(values, np.float64).reshape(-1, 3)
    points[:, :2] += HALF
    points[points[:, 2] == 0] = 0
    return points.astype(np.float32)


def to_coco(points: npt.NDArray[np.float32]) -> dict[str, list[float] | int]:
    """Convert keypoints (K, 3) to keys of a COCO annotation; the inverse of `from_coco`."""
    values = points.astype(np.float64)
    labelled = values[:, 2] > 0
    values[labelled, :2] -= HALF
    return {"keypoints": values.ravel().tolist(), "num_keypoints": int(labelled.sum())}


def _other_side(name: str) -> str:
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return name
