"""The images of a data set: keys and files, sorted, in one compact `ImageIndex`."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images in the order of their keys.

    `roots` maps a key's prefix ("" with a single root) to the folder that the rest of the key is relative to;
    `fingerprint` identifies the keys, and `content` what lies under them, e.g. to find their proposals again.
    """

    roots: dict[str, str]
    keys_array: pa.LargeStringArray

    @property
    def packed(self) -> bool:
        """True if images are inside shards."""
        return False

    @property
    def remote(self) -> bool:
        """True if images have to be fetched from another machine."""
        return False

    def __len__(self) -> int:
        return len(self.keys_array)

    def key(self, i: int) -> str:
        """Return the posix path of image `i`, relative to its root; unique in the index."""
        return str(self.keys_array[i].as_py())

    def keys(self) -> pa.LargeStringArray:
        """Return all keys, sorted."""
        return self.keys_array

    def path(self, i: int) -> str:
        """Return the file of image `i`."""
        key = self.key(i)
        for prefix, folder in self.roots.items():
            if key.startswith(prefix):
                return os.path.join(folder, key[len(prefix) :])
        raise KeyError(key)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the keys alone."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 1 << 16):
            digest.update("\n".join([*self.keys_array[start : start + (1 << 16)].to_pylist(), ""]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def content(self) -> str:
        """16 hex digits that depend on the keys and, by size and first 64 KiB, on 16 files spread evenly over them.

        Two cameras may name their images alike; no file is read whole, and none of the others at all.
        """
        digest = hashlib.sha256(self.fingerprint.encode())
        for row in np.unique(np.linspace(0, len(self) - 1, 16).round().astype(int)).tolist():
            try:
                with open(self.path(row), "rb") as file:
                    digest.update(b"%d " % os.fstat(file.fileno()).st_size + file.read(1 << 16))
            except OSError:  # training says so, should it come to that image
                digest.update(b"unreadable")
        return digest.hexdigest()[:16]

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ImageIndex":
        """Return the index of the images at `rows`, in their order."""
        return ImageIndex(self.roots, self.keys_array.take(pa.array(rows, type=pa.int64())))
