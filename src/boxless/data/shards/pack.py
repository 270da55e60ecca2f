"""Pack images into shards: tar files with the images' own bytes and metadata, and an index of their places.

Images are distributed over the shards in a random order that follows from the data, so that shards read one after
another show images of all folders. Each shard is written for itself, by a thread or on another machine (`write.py`),
then its note (.json in `.parts`); a pack that was stopped, even by kill -9, keeps the shards that are whole. Equal data
and settings give equal bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from boxless.data.open import MANIFEST
from boxless.data.shards.files import ShardFile
from boxless.data.shards.read import FORMAT, INDEX, read_manifest
from boxless.data.shards.write import LOCK, Part, Plan, ShardTask, shard_name, write_shard
from boxless.errors import UserError
from boxless.files import PARTIAL, locked, make_folder, written
from boxless.parallel import Engine, Local, WorkerDied

_PARTS = ".parts"


@dataclass(frozen=True)
class Packing:
    """Result of packing: shards, images, bytes; shards written by this call; (key, reason) of skipped images."""

    shards: int
    images: int
    bytes: int
    written: int
    left_out: list[tuple[str, str]]


def pack_images(
    plan: Plan,
    facts: dict[str, Any],
    out: Path,
    workers: int,
    advance: Callable[[int], None] = lambda images: None,
    engine: Engine | None = None,
) -> Packing:
    """Write the shards of a plan that a folder lacks, or that are not as they were written, then index and manifest.

    `facts`: for the manifest, the settings of the proposals and the categories; `workers`: threads; `advance` is told
    how many more images are done. `engine`: writes the shards instead of threads, perhaps on other machines, which see
    the images and `out` under the same paths.

    Raises:
        UserError: the folder holds shards of other data or settings, or cannot be written to; a worker died, or sees
            other files.
    """
    packer = _Packer(plan, out, engine or Local(workers, threads=True), engine is not None, advance)
    try:
        make_folder(out)
        with locked(out / LOCK, str(out)):
            written_now = packer.pack(facts)
    except WorkerDied as error:
        raise UserError(f"{error}; finished shards are kept in {out}: repeat the command") from error
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


@dataclass(frozen=True, eq=False)
class _Packer:
    """Checks and writes the shards of a plan in a folder; see `pack_images`.

    `elsewhere`: the engine's workers may be on other machines.
    """

    plan: Plan
    out: Path
    engine: Engine
    elsewhere: bool
    advance: Callable[[int], None]

    def pack(self, facts: dict[str, Any]) -> int:
        """Write what is lacking or broken; returns the number of shards written."""
        out, parts = self.out, self.out / _PARTS
        manifest = read_manifest(str(out / MANIFEST)) if (out / MANIFEST).is_file() else None
        if manifest:
            _refuse_other(self.plan, manifest["plan"], manifest.get("made", {}), out)
        if manifest and _is_intact((0, _file(out / INDEX, manifest["index"]))):
            shutil.rmtree(parts, ignore_errors=True)  # of a pack that was killed at its very end
            entries = dict(enumerate(manifest["shards"]))
            lacking = self._not_intact(entries)
            with closing(self._write(lacking, noted=False)) as written_anew:
                for number, part in written_anew:
                    if part.sha256 != entries[number]["sha256"]:
                        raise UserError(
                            f"{out / shard_name(number)}: cannot be repaired, because images have changed; pack into "
                            "another --out"
                        )
            return len(lacking)
        parts.mkdir(exist_ok=True)
        if (parts / "plan.json").is_file():
            _refuse_other(self.plan, **json.loads((parts / "plan.json").read_bytes()), out=out)
        elif manifest is None and any(out.glob("shard-*.tar")):
            raise UserError(f"{out}: holds shards without a {MANIFEST}; delete them or give another --out")
        _write(parts / "plan.json", json.dumps({"hash": self.plan.hash, "made": self.plan.made}).encode())
        done = self._noted()
        lacking = self._not_intact({number: vars(part) for number, part in done.items()})
        with closing(self._write(lacking, noted=True)) as written_now:
            done |= written_now
        _finish(self.plan, [done[number] for number in range(len(self.plan.ends))], facts, out)
        shutil.rmtree(parts)
        return len(lacking)

    def _not_intact(self, entries: dict[int, dict[str, Any]]) -> list[int]:
        """The numbers of the plan's shards whose size or SHA-256 differ from `entries`."""
        lacking = set(range(len(self.plan.ends)))
        files = [(number, _file(self.out.absolute() / shard_name(number), entry)) for number, entry in entries.items()]
        with closing(self.engine.run(_is_intact, files)) as checked:
            for (number, _), intact in checked:
                if intact:
                    lacking.discard(number)
                    self.advance(self.plan.ends[number] - (self.plan.ends[number - 1] if number else 0))
        return sorted(lacking)

    def _write(self, numbers: list[int], noted: bool) -> Generator[tuple[int, Part], None, None]:
        """Write shards, and a note beside each if asked to; yields each with its number when it is finished."""
        out, holder = self.out, None
        write: Callable[[ShardTask], Part] = partial(write_shard, advance=self.advance)
        if self.elsewhere:
            out, holder, write = out.absolute(), (out / LOCK).read_text(), write_shard
        tasks = (self.plan.task(number, out, holder, _note(out, number) if noted else None) for number in numbers)
        self._tidy()  # what a kill has left
        try:
            with closing(self.engine.run(write, tasks)) as finished:
                for task, part in finished:
                    if self.elsewhere:
                        _check_seen(task, part)
                        self.advance(len(task.images))
                    yield task.number, part
        finally:
            self._tidy()  # what workers that died have left

    def _noted(self) -> dict[int, Part]:
        """The shards that an earlier try has noted, except those that lack an image which can be read here.

        A worker on another machine did not see it, and the command may have ended before `_check_seen`.
        """
        notes = {number: _note(self.out, number) for number in range(len(self.plan.ends))}
        noted = {n: Part(**json.loads(note.read_bytes())) for n, note in notes.items() if note.is_file()}
        return {number: part for number, part in noted.items() if not any(part.missed(self.plan.index.path))}

    def _tidy(self) -> None:
        for half in self.out.glob(f"shard-*{PARTIAL}"):
            half.unlink(missing_ok=True)


def _file(path: Path, entry: dict[str, Any]) -> ShardFile:
    return ShardFile(str(path), entry["bytes"], entry["sha256"])


def _is_intact(shard: tuple[int, ShardFile]) -> bool:
    return shard[1].intact()


def _check_seen(task: ShardTask, part: Part) -> None:
    """Raise `UserError` if a worker on another machine left out an image that can be read here."""
    paths = {image.row: image.image for image in task.images}
    for path, reason in part.missed(paths.__getitem__):
        raise UserError(
            f"{path}: {reason} for a worker on another machine; all of a cluster's machines must find the images "
            "under the same path"
        )


def _note(out: Path, number: int) -> Path:
    return out / _PARTS / f"{number}.json"


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
            {"file": shard_name(n), "images": len(part.samples), "bytes": part.bytes, "sha256": part.sha256}
            for n, part in enumerate(parts)
        ],
    }
    _write(out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")


def _refuse_other(plan: Plan, hash: str, made: dict[str, Any], out: Path) -> None:
    """Raise `UserError` if a folder's shards, or parts of them, are of another plan, saying in what."""
    if hash == plan.hash:
        return
    other = [f"{key} was {made[key]}, is {now}" for key, now in plan.made.items() if made.get(key, now) != now]
    raise UserError(
        f"{out}: holds shards of other data or settings ({'; '.join(other) or 'labels, proposals or files differ'}); "
        "delete it or give another --out"
    )


def _write(path: Path, content: bytes) -> None:
    with written(path) as half:
        half.write_bytes(content)
