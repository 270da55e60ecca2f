"""Images inside shards: paths that are read from the middle of a tar file, and never unpacked to disk.

A shard is a plain tar file in WebDataset's convention. A sample is a few members of one name in a row: the image's own
bytes, `.proposals.npy` where there are any, and `.json`. Where each sample lies is known from the index beside the
shards, so one is read without the others; its CRC-32 is checked each time.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo

import numpy as np
from numpy.typing import NDArray

from boxless.data.shards.files import ShardFile
from boxless.errors import UserError

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


class Packed(str):
    """The path of an image in a shard, as messages show it: SHARD/KEY. `decode` takes it like that of a file."""

    sample: PackedSample

    def __new__(cls, name: str, sample: PackedSample) -> "Packed":
        """The path `name` of the image of a sample."""
        path = super().__new__(cls, name)
        path.sample = sample
        return path

    def __getnewargs__(self) -> tuple[str, PackedSample]:  # type: ignore[override]
        return str(self), self.sample

    def image(self) -> bytes:
        """The bytes of the image's file."""
        return next(iter(self.sample.members().values()))


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
