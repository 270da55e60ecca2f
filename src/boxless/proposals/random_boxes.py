"""Random boxes of allowed shape and size: the control of SoCo's ablation (its training with them can diverge)."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from boxless.proposals.limits import Array, BoxLimits, fits, whole_image


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
