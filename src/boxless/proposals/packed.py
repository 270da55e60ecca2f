"""The boxes of all images as training reads them, in a few arrays that processes can share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxless.proposals.limits import Array
from boxless.proposals.mapped import Mark, remapped


@dataclass(frozen=True, eq=False)
class PackedBoxes:
    """Boxes of N images in three arrays, however many images there are.

    Attributes:
        values: (T, 4) float32, source px xyxy; of all images of a table, perhaps mapped from its file (`mapped.py`).
        starts: (N,) int64; image i owns rows `starts[i]` to `ends[i]`.
        ends: (N,) int64.
        sizes: (N, 2) int32, (W, H) px of the images that the boxes are of; 0 where an image could not be read.
        missing: images that had no row in the table; they got one box, the whole image.
        mark: source of the mapped `values`, for other processes; None if they are not mapped.
    """

    values: Array
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int32]
    missing: int = 0
    mark: Mark | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.mark is None:
            return PackedBoxes, (self.values, self.starts, self.ends, self.sizes, self.missing)
        return _remapped, (self.mark, self.starts, self.ends, self.sizes, self.missing)

    @classmethod
    def end_to_end(cls, values: Array, counts: NDArray[np.int64], sizes: NDArray[np.int32]) -> "PackedBoxes":
        """Return the boxes of images that own `counts` rows each, one after the other."""
        ends = np.cumsum(counts, dtype=np.int64)
        return cls(values, ends - counts, ends, sizes)

    def __len__(self) -> int:
        return len(self.starts)

    def boxes(self, i: int) -> Array:
        """Return the boxes (N, 4) of image i, a copy; none if it could not be read."""
        return self.values[self.starts[i] : self.ends[i]].copy()

    def size(self, i: int) -> tuple[int, int] | None:
        """Return (W, H) px of the image that the boxes of image i are of; None if it could not be read."""
        width, height = self.sizes[i].tolist()
        return (width, height) if width else None

    def counts(self) -> NDArray[np.int64]:
        """Return the number of boxes of each image, (N,)."""
        return self.ends - self.starts

    def take(self, rows: NDArray[np.int64]) -> "PackedBoxes":
        """Return the images at `rows`, in their order; no box is copied."""
        return PackedBoxes(self.values, self.starts[rows], self.ends[rows], self.sizes[rows], mark=self.mark)

    def joined(self) -> Array:
        """Return the boxes of image after image, (T, 4): those of `values` that any image owns."""
        counts = self.counts()
        first = np.repeat(self.ends - np.cumsum(counts), counts)
        boxes: Array = self.values[first + np.arange(len(first))]
        return boxes


def values_of(rows: pa.Table) -> Array:
    """Return the boxes (T, 4) of a table's rows, which lie in one chunk; not a copy."""
    values: Array = rows["boxes"].chunk(0).values.to_numpy().reshape(-1, 4)
    return values


def _remapped(
    mark: Mark, starts: NDArray[np.int64], ends: NDArray[np.int64], sizes: NDArray[np.int32], missing: int
) -> PackedBoxes:
    return PackedBoxes(values_of(remapped(mark)), starts, ends, sizes, missing, mark)
