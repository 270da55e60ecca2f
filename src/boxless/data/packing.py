"""From images to shards: tar files with the images' own bytes, what is known of each, and an index of what lies where.

Images are dealt to shards in a random order that follows from the data, so that shards read one after another show
images of all folders. Each shard is written for itself, then its part (.json in `.parts`); a pack that was stopped,
even by kill -9, keeps the shards that are whole. Equal data and settings give equal bytes.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import Any

import numpy as np
import pyarrow as pa

from boxless.data.images import EXTENSIONS
from boxless.data.index import ImageIndex
from boxless.data.packed import sample_bytes
from boxless.data.returning import patient
from boxless.data.shard_files import MANIFEST, ShardFile
from boxless.data.shards import FORMAT, INDEX, read_manifest
from boxless.durable import locked, make_folder, written
from boxless.errors import UserError

Extras = Callable[[int], dict[str, bytes]]
"""What goes beside the image of a row: bytes by extension."""

LOCK = ".lock"
_PARTS = ".parts"
_END = 2 * BLOCKSIZE  # bytes of zeros that end a tar file


@dataclass(frozen=True)
class Packing:
    """What is packed: shards, images, bytes; shards that were written now; (key, reason) of images left out."""

    shards: int
    images: int
    bytes: int
    written: int
    left_out: list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """A shard as it was written: bytes, SHA-256, (row, offset, size, CRC-32) of each sample, (row, why) left out."""

    bytes: int
    sha256: str
    samples: list[tuple[int, int, int, int]]
    left_out: list[tuple[int, str]]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images each shard gets, before any is read.

    Attributes:
        index: the images.
        extras: what goes beside each.
        rows: of the index, in the order of packing.
        ends: where each shard's rows end in `rows`.
        hash: of all that decides on the shards' bytes but the images' pixels.
        made: the part of that which people know, by name.
    """

    index: ImageIndex
    extras: Extras
    rows: np.ndarray
    ends: list[int]
    hash: str
    made: dict[str, Any]

    def write(self, number: int, path: Path, advance: Callable[[int], None]) -> Part:
        """Write a shard; images that cannot be read are left out."""
        start = self.ends[number - 1] if number else 0
        sha, at, samples, left_out = hashlib.sha256(), 0, [], []
        with written(path) as partial, partial.open("wb") as file:
            for place in range(start, self.ends[number]):
                row = int(self.rows[place])
                try:
                    block = self._sample(row, f"{place:09d}")
                except OSError as error:
                    left_out.append((row, error.strerror or type(error).__name__))
                    block = b""
                else:
                    samples.append((row, at, len(block), zlib.crc32(block)))
                sha.update(block)
                at += file.write(block)
                advance(1)
            tail = bytes(_END + -(at + _END) % RECORDSIZE)
            sha.update(tail)
            file.write(tail)
        return Part(at + len(tail), sha.hexdigest(), samples, left_out)

    def _sample(self, row: int, name: str) -> bytes:
        image = _content(self.index.path(row))
        return sample_bytes(name, {_extension(self.index.key(row)): image, **self.extras(row)})


def plan_shards(index: ImageIndex, extras: Extras, limit: int) -> Plan:
    """Deal images to shards of at most `limit` bytes; only an image that is larger by itself makes a larger one."""
    rows = np.random.default_rng(int(index.fingerprint, 16)).permutation(len(index))
    sha = hashlib.sha256(f"{FORMAT} {limit}".encode())
    ends, used = [], _END
    for place, row in enumerate(rows.tolist()):
        try:
            size = os.stat(index.path(row)).st_size
        except OSError:
            size = 0
        beside = extras(row)
        sha.update(f"{index.key(row)} {size}".encode())
        for content in beside.values():
            sha.update(content)
        needed = sum(BLOCKSIZE + each + -each % BLOCKSIZE for each in (size, *map(len, beside.values())))
        if place and -(-(used + needed) // RECORDSIZE) * RECORDSIZE > limit:
            ends.append(place)
            used = _END
        used += needed
    made = {"shard_mb": limit // 1_000_000, "images": len(index), "keys": index.fingerprint}
    return Plan(index, extras, rows, [*ends, len(rows)], sha.hexdigest(), made)


def pack_images(
    plan: Plan, facts: dict[str, Any], out: Path, workers: int, advance: Callable[[int], None] = lambda images: None
) -> Packing:
    """Write the shards of a plan that a folder lacks, or that are not as they were written, then index and manifest.

    `facts`: for the manifest, the settings of the proposals and the categories; `workers`: threads; `advance` is told
    how many more images are done.

    Raises:
        UserError: the folder holds shards of other data or settings, or cannot be written to.
    """
    try:
        make_folder(out)
        with locked(out / LOCK, str(out)):
            written_now = _pack(plan, facts, out, workers, advance)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); shards that are finished are kept") from error
    manifest = read_manifest(str(out / MANIFEST))
    return Packing(
        shards=len(manifest["shards"]),
        images=manifest["images"],
        bytes=sum(entry["bytes"] for entry in manifest["shards"]),
        written=written_now,
        left_out=[(key, reason) for key, reason in manifest["left_out"]],
    )


def _pack(plan: Plan, facts: dict[str, Any], out: Path, workers: int, advance: Callable[[int], None]) -> int:
    earlier = read_manifest(str(out / MANIFEST)) if (out / MANIFEST).is_file() else None
    if earlier:
        _refuse_other(plan, earlier["plan"], earlier.get("made", {}), out)
    if earlier and ShardFile(str(out / INDEX), earlier["index"]["bytes"], earlier["index"]["sha256"]).intact():
        shutil.rmtree(out / _PARTS, ignore_errors=True)  # of a pack that was killed at its very end
        return _mend(plan, earlier["shards"], out, workers, advance)
    return _write_all(plan, facts, out, workers, advance)


def _mend(plan: Plan, shards: list[dict[str, Any]], out: Path, workers: int, advance: Callable[[int], None]) -> int:
    """Write again what is broken of a finished pack; returns the number of such shards."""

    def mend(number: int) -> bool:
        entry = shards[number]
        path = out / entry["file"]
        if ShardFile(str(path), entry["bytes"], entry["sha256"]).intact():
            advance(entry["images"])
            return False
        if plan.write(number, path, advance).sha256 != entry["sha256"]:
            raise UserError(f"{path}: cannot be mended, for the images have changed since; pack into another --out")
        return True

    return sum(_in_threads(mend, len(plan.ends), workers))


def _write_all(plan: Plan, facts: dict[str, Any], out: Path, workers: int, advance: Callable[[int], None]) -> int:
    """Write the shards that no earlier try has left; returns their number."""
    parts = out / _PARTS
    parts.mkdir(exist_ok=True)
    if (parts / "plan.json").is_file():
        _refuse_other(plan, **json.loads((parts / "plan.json").read_bytes()), out=out)
    elif not (out / MANIFEST).is_file() and any(out.glob("shard-*.tar")):
        raise UserError(f"{out}: holds shards without a {MANIFEST}; delete them or give another --out")
    _write(parts / "plan.json", json.dumps({"hash": plan.hash, "made": plan.made}).encode())

    def write(number: int) -> tuple[Part, bool]:
        path, note = out / f"shard-{number:06d}.tar", parts / f"{number}.json"
        if note.is_file():
            part = Part(**json.loads(note.read_bytes()))
            if ShardFile(str(path), part.bytes, part.sha256).intact():
                advance(len(part.samples) + len(part.left_out))
                return part, False
        part = plan.write(number, path, advance)
        _write(note, json.dumps(asdict(part)).encode())
        return part, True

    done = list(_in_threads(write, len(plan.ends), workers))
    _finish(plan, [part for part, _ in done], facts, out)
    shutil.rmtree(parts)
    return sum(written for _, written in done)


def _finish(plan: Plan, parts: list[Part], facts: dict[str, Any], out: Path) -> None:
    """Write the index and, last, the manifest."""
    samples = np.array([sample for part in parts for sample in part.samples], np.int64).reshape(-1, 4)
    if not len(samples):
        raise UserError(f"{plan.index.path(0)}: {parts[0].left_out[0][1]}; so are all images: check the data")
    shard = np.repeat(np.arange(len(parts)), [len(part.samples) for part in parts])
    order = np.argsort(samples[:, 0])
    rows, offset, size, crc32 = samples[order].T
    kept = plan.index.subset(rows)
    table = pa.table(
        {
            "key": kept.keys().cast(pa.large_string()),
            "shard": shard[order].astype(np.int32),
            "offset": offset,
            "size": size,
            "crc32": crc32.astype(np.uint32),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    _write(out / INDEX, content)
    manifest = {
        "format": FORMAT,
        "images": len(samples),
        "fingerprint": kept.fingerprint,
        "plan": plan.hash,
        "made": plan.made,
        **facts,
        "left_out": [(plan.index.key(row), reason) for part in parts for row, reason in part.left_out],
        "index": {"file": INDEX, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "shards": [
            {"file": f"shard-{n:06d}.tar", "images": len(part.samples), "bytes": part.bytes, "sha256": part.sha256}
            for n, part in enumerate(parts)
        ],
    }
    _write(out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")


def _in_threads(task: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    with ThreadPoolExecutor(workers) as threads:  # files and checksums let go of the interpreter
        try:
            yield from threads.map(task, range(count))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _refuse_other(plan: Plan, hash: str, made: dict[str, Any], out: Path) -> None:
    """Raise `UserError` where a folder's shards, or parts of them, are of another plan, saying in what."""
    if hash == plan.hash:
        return
    other = [f"{key} was {made[key]}, is {now}" for key, now in plan.made.items() if made.get(key, now) != now]
    raise UserError(
        f"{out}: holds shards of other data or settings ({'; '.join(other) or 'labels, proposals or files differ'}); "
        "delete it or give another --out"
    )


def _write(path: Path, content: bytes) -> None:
    with written(path) as partial:
        partial.write_bytes(content)


@patient
def _content(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def _extension(key: str) -> str:
    suffix = PurePosixPath(key).suffix.lower()
    return suffix[1:] if suffix in EXTENSIONS else "image"
