"""Which images each shard gets, in a random order that follows from the data, and what a worker has to know of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import Any

import numpy as np

from boxless.data.images import EXTENSIONS
from boxless.data.index import ImageIndex
from boxless.data.retry import status
from boxless.data.shards.index import FORMAT
from boxless.data.shards.write import END, ShardTask, Unpacked

Extras = Callable[[int], dict[str, bytes]]
"""Files packed beside the image of a row: bytes by extension."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images each shard gets, before any is read.

    Attributes:
        index: the images.
        extras: files beside each image.
        rows: number of rows of the index, in the order of packing.
        ends: end of each shard's rows in `rows`.
        hash: hash of everything that determines the shards' bytes, except the images' pixels.
        made: the part of that which people know, by name.
    """

    index: ImageIndex
    extras: Extras
    rows: np.ndarray
    ends: list[int]
    hash: str
    made: dict[str, Any]

    def task(self, number: int, out: Path, holder: str | None, note: Path | None) -> ShardTask:
        """Everything that a worker needs to write a shard into a folder; `holder`, `note`: see `ShardTask`."""
        places = range(self.ends[number - 1] if number else 0, self.ends[number])
        images = [self._unpacked(int(self.rows[place]), f"{place:09d}") for place in places]
        return ShardTask(number, out / shard_name(number), images, holder, note)

    def _unpacked(self, row: int, name: str) -> Unpacked:
        return Unpacked(row, self.index.path(row), name, _extension(self.index.key(row)), self.extras(row))


def plan_shards(index: ImageIndex, extras: Extras, limit: int) -> Plan:
    """Deal images to shards of at most `limit` bytes; only an image that is larger by itself makes a larger one."""
    rows = np.random.default_rng(int(index.fingerprint, 16)).permutation(len(index))
    sha = hashlib.sha256(f"{FORMAT} {limit}".encode())
    ends, used = [], END
    for place, row in enumerate(rows.tolist()):
        try:
            size = status(index.path(row)).st_size
        except OSError:
            size = 0
        beside = extras(row)
        sha.update(f"{index.key(row)} {size}".encode())
        for content in beside.values():
            sha.update(content)
        needed = sum(BLOCKSIZE + each + -each % BLOCKSIZE for each in (size, *map(len, beside.values())))
        if place and -(-(used + needed) // RECORDSIZE) * RECORDSIZE > limit:
            ends.append(place)
            used = END
        used += needed
    made = {"shard_mb": limit // 1_000_000, "images": len(index), "keys": index.fingerprint}
    return Plan(index, extras, rows, [*ends, len(rows)], sha.hexdigest(), made)


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:06d}.tar"


def _extension(key: str) -> str:
    suffix = PurePosixPath(key).suffix.lower()
    return suffix[1:] if suffix in EXTENSIONS else "image"
