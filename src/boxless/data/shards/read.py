"""Packed data sets as input: an index of places, and images read from the middle of a tar file.

A folder (or a prefix behind a URL) holds `shard-000000.tar` ..., `index.arrow` and `manifest.json`. The index has a row
per image, sorted by key: key string, shard int32, offset int64 and size int64 (of the sample, bytes) and crc32 uint32.
A shard is a plain tar file in WebDataset's convention. A sample is a few members of one name in a row: the image's own
bytes, `.proposals.npy` where there are any, and `.json`; its CRC-32 is checked each time it is read. Nothing is ever
unpacked to disk.

Since any image of a shard on this machine can be read at once, shards are but another `ImageIndex`: what is drawn, in
which order, is the same as from the folder that was packed.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxless.data.images import StoredImage
from boxless.data.index import ImageIndex
from boxless.data.open import MANIFEST
from boxless.data.shards.files import ShardFile, cache_folder, cache_limit, is_remote, read_whole
from boxless.errors import UserError
from boxless.untrusted import parse_json

INDEX = "index.arrow"
FORMAT = "boxless shards 1"

_SHARD = re.compile(r"shard-\d{6,}\.tar")
_COLUMNS = {"shard": pa.int32(), "offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}
PROPOSALS = "proposals.npy"
FACTS = "json"


@dataclass(frozen=True)
class PackedSample:
    """Location of a sample: `size` bytes of a shard from `offset` on, with a known CRC-32."""

    shard: ShardFile
    offset: int
    size: int
    crc32: int

    def members(self) -> dict[str, bytes]:
        """The bytes of each member by its extension, the image first.

        Raises:
            UserError: the shard is missing, cut short, or not what was packed.
        """
        return _members(self)

    def proposals(self) -> NDArray[np.float32]:
        """Boxes (N, 4), source px xyxy.

        Raises:
            UserError: as `members` does, or there are no boxes.
        """
        try:
            boxes: NDArray[np.float32] = np.load(BytesIO(self.members()[PROPOSALS]), allow_pickle=False)
            if boxes.dtype != np.float32 or boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
                raise ValueError(f"an array of {boxes.shape}, {boxes.dtype}")
        except (LookupError, ValueError, EOFError, MemoryError) as error:
            raise UserError(f"{self.shard.place}: at byte {self.offset} are no proposals ({error})") from error
        return boxes


class PackedImage(StoredImage):
    """The path of an image in a shard, as messages show it: SHARD/KEY. `decode` takes it like that of a file."""

    sample: PackedSample

    def __new__(cls, name: str, sample: PackedSample) -> "PackedImage":
        """The path `name` of the image of a sample."""
        path = super().__new__(cls, name)
        path.sample = sample
        return path

    def __getnewargs__(self) -> tuple[str, PackedSample]:  # type: ignore[override]
        return str(self), self.sample

    def content(self) -> bytes:
        """The bytes of the image's file."""
        return next(iter(self.sample.members().values()))

    def stamp(self) -> str:
        """The sample's size and checksum."""
        return f"{self.sample.size} {self.sample.crc32}"


@dataclass(frozen=True, eq=False)
class ShardIndex(ImageIndex):
    """Images inside shards, in the order of their keys.

    Attributes:
        place: place of the manifest, a path or a URL.
        files: the shards.
        columns: shard, offset, size and crc32 of each image, (N,).
        proposals: settings of the proposals inside, if any.
        categories: COCO's categories of the labels inside, if any.
    """

    place: str
    files: tuple[ShardFile, ...]
    columns: dict[str, NDArray[Any]]
    proposals: dict[str, Any] | None
    categories: list[dict[str, Any]] | None

    @property
    def packed(self) -> bool:
        """True: images are inside shards."""
        return True

    @property
    def remote(self) -> bool:
        """True if shards have to be fetched."""
        return is_remote(self.place)

    @cached_property
    def content(self) -> str:
        """As of any index, by the samples' checksums: nothing is fetched for it."""
        return hashlib.sha256(self.fingerprint.encode() + self.columns["crc32"].tobytes()).hexdigest()[:16]

    def sample(self, i: int) -> PackedSample:
        """Return the place of image `i` and its other members."""
        shard, offset, size, crc32 = (int(column[i]) for column in self.columns.values())
        return PackedSample(self.files[shard], offset, size, crc32)

    def path(self, i: int) -> str:
        """Return the path of image `i`, which `decode` can read."""
        sample = self.sample(i)
        return PackedImage(f"{sample.shard.place}/{self.key(i)}", sample)

    def boxes(self, i: int) -> NDArray[np.float32]:
        """Return the proposals of image `i`, (N, 4), source px xyxy."""
        return self.sample(i).proposals()

    def size(self, i: int) -> None:
        """Return None: a shard does not hold the size that the proposals of image `i` were made for."""

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ShardIndex":
        """Return the index of the images at `rows`, in their order."""
        chosen = np.asarray(rows, np.int64)
        columns = {name: column[chosen] for name, column in self.columns.items()}
        keys = self.keys_array.take(pa.array(chosen))
        return ShardIndex(self.roots, keys, self.place, self.files, columns, self.proposals, self.categories)

    def require_room(self, shards: int) -> None:
        """Raise `UserError` if fewer than `shards` shards that were fetched can be kept at a time."""
        size = shards * max(file.size for file in self.files)
        if self.remote and cache_limit() < min(size, sum(file.size for file in self.files)):
            raise UserError(
                f"{cache_folder()}: {shards} shards at a time take {size / 1e9:.1f} GB: set BOXLESS_CACHE_GB to that, "
                "or shard_buffer lower"
            )


def open_shards(where: str | Path) -> ShardIndex:
    """Open a packed data set by its manifest or folder, a path or a URL; shards are checked for existence, not read.

    Raises:
        UserError: the manifest or a shard is missing, cut short or something else.
    """
    place = str(where) if PurePosixPath(str(where)).name == MANIFEST else f"{str(where).rstrip('/')}/{MANIFEST}"
    manifest = read_manifest(place)
    around = place[: -len(MANIFEST)]
    try:
        entries = manifest["shards"]
        strange = [entry["file"] for entry in entries if not _SHARD.fullmatch(entry["file"])]
        if strange or not entries:
            raise ValueError(f"a shard is called {strange[0]!r:.60}" if strange else "it names no shard")
        files = tuple(_file(around + entry["file"], entry) for entry in entries)
        rows = _file(around + INDEX, manifest["index"])
        fingerprint, proposals, categories = (manifest[key] for key in ("fingerprint", "proposals", "categories"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: broken ({error}); copy it again, or pack again") from error
    for file in (rows, *files):
        file.check()
    keys, columns = _read_index(rows, files)
    index = ShardIndex({"": around}, keys, place, files, columns, proposals, categories)
    index.__dict__["fingerprint"] = fingerprint
    return index


def read_manifest(place: str) -> dict[str, Any]:
    """Return the content of a manifest; raises `UserError` if there is none."""
    try:
        manifest: dict[str, Any] = parse_json(read_whole(place))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r:.40}, not {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: not the manifest of shards ({error}); make them with `boxless pack`") from error
    return manifest


def _file(place: str, entry: dict[str, Any]) -> ShardFile:
    size, sha256 = entry["bytes"], entry["sha256"]
    if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", sha256):  # the name of a file in the cache
        raise ValueError(f"{place} has no size or no SHA-256")
    return ShardFile(place, size, sha256)


def _read_index(file: ShardFile, shards: Sequence[ShardFile]) -> tuple[pa.LargeStringArray, dict[str, NDArray[Any]]]:
    """Return the keys and where each image lies, in shards that are known."""
    path = file.local()
    if not file.remote and not file.intact():
        raise UserError(f"{file.place}: altered since it was packed: wrong checksum; copy it again, or pack again")
    try:
        with pa.memory_map(str(path)) as source:  # shared by all processes, and read as needed
            table = pa.ipc.open_file(source).read_all()
        # Written as one chunk; what joins chunks would copy it into memory.
        keys, *others = (table[name].chunk(0) for name in ("key", *_COLUMNS))
        if [column.type for column in (keys, *others)] != [pa.large_string(), *_COLUMNS.values()]:
            raise ValueError("its columns are of other types")
        if any(column.null_count for column in (keys, *others)):
            raise ValueError("it has empty entries")
        columns = {name: column.to_numpy() for name, column in zip(_COLUMNS, others, strict=True)}
        shard, offset, size = (columns[name] for name in ("shard", "offset", "size"))
        if shard.min() < 0 or shard.max() >= len(shards) or offset.min() < 0 or size.min() <= 0:
            raise ValueError("it names places that are in no shard")
        if (size > np.array([each.size for each in shards])[shard] - offset).any():
            raise ValueError("it names places beyond the end of a shard")
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file.place}: not the index of shards ({error}); copy it again, or pack again") from error
    return keys, columns


@lru_cache(maxsize=1)  # an image's boxes, size and pixels are asked for one after another
def _members(sample: PackedSample) -> dict[str, bytes]:
    block = sample.shard.read(sample.offset, sample.size)
    if zlib.crc32(block) != sample.crc32:
        raise UserError(
            f"{sample.shard.place}: altered since it was packed: wrong checksum at byte {sample.offset}; copy it "
            "again, or pack again where it was packed, which repairs it"
        )
    members, at = {}, 0
    try:
        while at < len(block):
            header, start = block[at : at + BLOCKSIZE], at + BLOCKSIZE
            name, size = header[:100].rstrip(b"\0").decode(), int(header[124:135], 8)
            if not 0 <= size <= len(block) - start:
                raise ValueError("a member reaches beyond the sample")
            members[name.partition(".")[2]] = block[start : start + size]
            at = start + size + -size % BLOCKSIZE
    except ValueError as error:
        raise UserError(f"{sample.shard.place}: no sample at byte {sample.offset} ({error}); pack again") from error
    return members
