"""Writing one shard: the same task for a thread of the command and for a worker on another machine.

A task says all that a worker has to know, so that it needs neither the index nor the proposals, and what it writes does
not depend on who writes it. Which images each shard gets follows from the data, in a random order.
"""

import hashlib
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE, RECORDSIZE, USTAR_FORMAT, TarInfo
from typing import Any

import numpy as np

from boxless.data.images import EXTENSIONS
from boxless.data.index import ImageIndex
from boxless.data.retry import retry, stat
from boxless.data.shards.read import FORMAT
from boxless.errors import UserError
from boxless.files import written

LOCK = ".lock"
"""Beside the shards while a command packs into their folder; says which one."""

END = 2 * BLOCKSIZE
"""Bytes of zeros that end a tar file, at least."""
Extras = Callable[[int], dict[str, bytes]]
"""Files packed beside the image of a row: bytes by extension."""


@dataclass(frozen=True)
class Unpacked:
    """An image to pack.

    Attributes:
        row: row of the index.
        image: path of its file.
        name: name of its members in the tar file.
        extension: extension of the member that holds the image.
        beside: bytes of the other members, by extension.
    """

    row: int
    image: str
    name: str
    extension: str
    beside: dict[str, bytes]

    def packed(self) -> bytes:
        """The part of a tar file that holds it; raises `OSError` if the image cannot be read."""
        return sample_bytes(self.name, {self.extension: _content(self.image), **self.beside})


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        number: number of the shard.
        path: path of its file.
        images: images of the shard.
        holder: expected content of `LOCK`; None: not checked.
        note: path for the shard's `Part` as JSON, once the shard is complete; None: not written.
    """

    number: int
    path: Path
    images: list[Unpacked]
    holder: str | None = None
    note: Path | None = None

    def check_held(self) -> None:
        """Raise `UserError` unless the folder is the one of the command that gave this task, and it is still there."""
        if self.holder is None:
            return
        try:
            reason = "" if (self.path.parent / LOCK).read_text() == self.holder else "another folder"
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if reason:
            raise UserError(
                f"{self.path.parent}: {reason} for a worker on {socket.gethostname()}; all of a cluster's machines "
                "must find the folder of --out under the same path"
            )


@dataclass(frozen=True)
class Part:
    """A shard as it was written: bytes, SHA-256, (row, offset, size, CRC-32) of each sample, (row, why) left out."""

    bytes: int
    sha256: str
    samples: list[tuple[int, int, int, int]]
    left_out: list[tuple[int, str]]

    def missed(self, path: Callable[[int], str]) -> Iterator[tuple[str, str]]:
        """(path, why) of the images left out that can be read here; `path`: of a row's image."""
        for row, reason in self.left_out:
            try:
                _content(path(row))
            except OSError:
                continue
            yield path(row), reason


def write_shard(task: ShardTask, advance: Callable[[int], None] = lambda images: None) -> Part:
    """Write a shard, then its note; images that cannot be read are left out.

    `advance` is told how many more images are done.

    Raises:
        UserError: the disk is full, say, or the folder is not that of the command.
        OSError: the folder cannot be written to.
    """
    sha, at, samples, left_out = hashlib.sha256(), 0, [], []
    task.check_held()
    # not alone: a worker that a cluster took for dead may still be at the same shard
    with written(task.path, alone=False) as partial, partial.open("wb") as file:
        for image in task.images:
            try:
                block = image.packed()
            except OSError as error:
                left_out.append((image.row, error.strerror or type(error).__name__))
                block = b""
            else:
                samples.append((image.row, at, len(block), zlib.crc32(block)))
            sha.update(block)
            at += file.write(block)
            advance(1)
        tail = bytes(END + -(at + END) % RECORDSIZE)
        sha.update(tail)
        file.write(tail)
        task.check_held()  # the command may have ended since, and another one may have the folder
    part = Part(at + len(tail), sha.hexdigest(), samples, left_out)
    if task.note:  # here, for the command may hear no more of this shard: another one has failed, say
        with written(task.note, alone=False) as partial:
            partial.write_text(json.dumps(asdict(part)))
            task.check_held()
    return part


@retry
def _content(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def sample_bytes(name: str, members: dict[str, bytes]) -> bytes:
    """The part of a tar file that holds a sample: members of one name by their extensions, in their order.

    Neither time nor owner nor mode of the files are kept, so that equal samples have equal bytes.
    """
    parts = []
    for extension, content in members.items():
        member = TarInfo(f"{name}.{extension}")
        member.size = len(content)
        parts += [member.tobuf(USTAR_FORMAT), content, bytes(-len(content) % BLOCKSIZE)]
    return b"".join(parts)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images each shard gets, before any is read.

    Attributes:
        index: the images.
        extras: files beside each image.
        rows: rows of the index, in packing order.
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
    """Assign images to shards of at most `limit` bytes; only a larger image makes a larger shard."""
    rows = np.random.default_rng(int(index.fingerprint, 16)).permutation(len(index))
    sha = hashlib.sha256(f"{FORMAT} {limit}".encode())
    ends, used = [], END
    for place, row in enumerate(rows.tolist()):
        try:
            size = stat(index.path(row)).st_size
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
