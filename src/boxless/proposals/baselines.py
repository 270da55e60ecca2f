"""Boxes that know nothing of the image, as baselines: a regular grid, and random ones (control of SoCo's ablation).

SoCo's training with random boxes can diverge.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from boxless.proposals.limits import Array, BoxLimits, fits, whole_image


@dataclass(frozen=True)
class Grid:
    """Settings of the grid.

    Attributes:
        shares: sizes as sqrt(w h) / sqrt(W H).
        aspects: shapes as w / h.
        step: distance of neighbours as a share of the box's side, at most.
        limits: boxes outside of them are left out.
    """

    shares: tuple[float, ...] = (0.3, 0.42, 0.58, 0.8)
    aspects: tuple[float, ...] = (0.5, 1.0, 2.0)
    step: float = 0.5
    limits: BoxLimits = field(default_factory=BoxLimits)

    def propose(self, image: np.ndarray, key: str) -> tuple[Array, int]:
        """Return the boxes (N, 4) of an image and 0, or 3 where only the whole image fits; `key` is not used."""
        boxes = grid_boxes(image.shape[1], image.shape[0], self)
        return (boxes, 0) if len(boxes) else (whole_image(image.shape[1], image.shape[0]), 3)


def grid_boxes(width: int, height: int, settings: Grid = Grid()) -> Array:
    """Return boxes (N, 4) float32, source px xyxy, from edge to edge of a `width` x `height` px image; maybe none."""
    found = [np.zeros((0, 4))]
    for share in settings.shares:
        for aspect in settings.aspects:
            side = share * np.sqrt(float(width) * height)
            w, h = side * np.sqrt(aspect), side / np.sqrt(aspect)
            if w <= width and h <= height:
                x, y = np.meshgrid(_starts(w, width, settings.step), _starts(h, height, settings.step))
                found.append(np.stack([x, y, x + w, y + h], axis=-1).reshape(-1, 4))
    boxes = np.concatenate(found).astype(np.float32).clip(0, np.array([width, height] * 2, np.float32))
    # A share of exactly 0.3 may round to just below it: such a box is meant to be in.
    slack = 1e-5
    low, high = settings.limits.share
    rounded = BoxLimits(settings.limits.aspect, (low * (1 - slack), high * (1 + slack)), settings.limits.min_side)
    return boxes[fits(boxes, width, height, rounded)]


def _starts(side: float, extent: int, step: float) -> np.ndarray:
    return np.linspace(0, extent - side, int(np.ceil((extent - side) / (step * side))) + 1)


@dataclass(frozen=True)
class RandomBoxes:
    """Settings: `count` boxes per image within `limits`; `seed` and the image's key fix them."""

    count: int = 64
    seed: int = 0
    limits: BoxLimits = field(default_factory=BoxLimits)

    def propose(self, image: np.ndarray, key: str) -> tuple[Array, int]:
        """Return the boxes (N, 4) of an image and 0, or 3 where only the whole image fits."""
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        height, width = image.shape[:2]
        boxes = random_boxes(width, height, self.count, int.from_bytes(digest[:8]), self.limits)
        return (boxes, 0) if len(boxes) else (whole_image(width, height), 3)


def random_boxes(width: int, height: int, count: int, seed: int, limits: BoxLimits = BoxLimits()) -> Array:  # noqa: B008
    """Return up to `count` boxes (N, 4) float32, source px xyxy, inside a `width` x `height` px image.

    Size (share) uniform, shape log-uniform, place uniform. Fewer than `count` only where hardly any box fits, as in
    images much longer than wide.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros((0, 4), np.float32)
    low, high = np.log(np.maximum(limits.aspect, 1e-3))
    for _ in range(20):
        side = rng.uniform(*limits.share, size=4 * count) * np.sqrt(float(width) * height)
        root = np.exp(rng.uniform(low, high, size=4 * count) / 2)
        w, h = side * root, side / root
        x, y = rng.random(4 * count) * (width - w), rng.random(4 * count) * (height - h)
        boxes = np.stack([x, y, x + w, y + h], axis=1)[(w <= width) & (h <= height)].astype(np.float32)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        found = np.concatenate([found, boxes[fits(boxes, width, height, limits)]])
        if len(found) >= count:
            break
    return found[:count]
