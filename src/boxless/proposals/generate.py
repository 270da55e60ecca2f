"""From images to a table of proposals on all cores; a run that is stopped, even by kill -9, goes on where it was.

Workers compute blocks of images, here or on other machines (`boxless.parallel`). Each finished block is kept as a small
table in `<out>.parts/`, and at the end these become one table in the order of the index. A row depends on its image and
the settings alone, so neither the number of workers nor any interruption changes the table.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boxless.data.images import BadImage, decode
from boxless.data.index import ImageIndex
from boxless.data.retry import remember_folder, stat
from boxless.errors import UserError
from boxless.files import explain_write_errors, locked, make_folder
from boxless.parallel import Engine, Local, WorkerDied, available_cores
from boxless.proposals.baselines import Grid, RandomBoxes
from boxless.proposals.selective_search import PRESETS, SelectiveSearch
from boxless.proposals.table import ProposalTable, Row
from boxless.training.progress import progress, say

Method = SelectiveSearch | Grid | RandomBoxes
Block = list[tuple[str, str]]
"""Keys and paths of images."""

LARGEST_BLOCK = 64
"""Images of a block: what a kill may cost each worker."""


@dataclass(frozen=True, eq=False)
class Produced:
    """A finished table, how many of its images this run computed, in how many seconds of wall time."""

    path: Path
    table: ProposalTable
    computed: int
    seconds: float


def settings_of(method: Method) -> dict[str, Any]:
    """Return the method's name and settings as JSON values, as a table's metadata holds them."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(method).__name__).lower()
    settings: dict[str, Any] = json.loads(json.dumps({"method": name, **dataclasses.asdict(method)}))
    return settings


def make_proposals(
    index: ImageIndex,
    out: str | Path,
    method: Method = PRESETS["fast"],
    workers: int | None = None,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Produced:
    """Write the proposals of all images of the index to `out`, computing only what `out` and its parts lack.

    `workers`: processes, default one per core; 1 computes in this process. `engine`: computes instead of them, perhaps
    on other machines, which see the images under the same paths; `out` need only be there for this process. Rows of
    `out` that the index lacks are kept at the end. Images that cannot be read get a row that says why.

    Raises:
        UserError: `out` holds something else, belongs to other images or has other settings; a worker died.
    """
    out, started, settings = Path(out), time.monotonic(), settings_of(method)
    make_folder(out.parent)
    with locked(out.with_name(f".{out.name}.lock"), str(out)), explain_write_errors(out):
        old = existing(out, index, settings)
        finished = _load_parts(out, settings, quiet)
        if finished:
            say(f"{out}: continuing with {sum(map(len, finished))} images of an earlier run", quiet)
        todo = _lacking(index, [*old, *finished])
        if len(todo):
            make_folder(parts_folder(out))
            engine = engine or Local(min(workers or available_cores(), len(todo)))
            _compute(index, todo, out, partial(compute_block, method=method, settings=settings), engine, quiet)
            finished = _load_parts(out, settings, quiet)
        if finished or not old:
            _merged(index, old, finished, settings).write(out)
            table = ProposalTable.open(out)  # as training will, which makes what is mapped of a large one
        else:
            table = old[0]
            say(f"{out}: nothing to do, it has all {len(index)} images", quiet)
        shutil.rmtree(parts_folder(out), ignore_errors=True)
    return Produced(out, table, len(todo), time.monotonic() - started)


def existing(out: Path, index: ImageIndex, settings: dict[str, Any]) -> list[ProposalTable]:
    """Return the table at `out`, if any; raises `UserError` unless these settings made it for some of these images."""
    if not out.exists():
        return []
    table = ProposalTable.open(out)
    if table.settings != settings:
        changed = _differences(table.settings, settings)
        raise UserError(f"{out}: made with other settings ({changed}); give another --out or delete it")
    if len(table) and len(index) and (table.rows_of(index) < 0).all():
        raise UserError(f"{out}: belongs to other images ({table.keys[0].as_py()} ...); give another --out")
    return [table]


def parts_folder(out: Path) -> Path:
    """Folder of the finished blocks until all are finished."""
    return out.with_name(f"{out.name}.parts")


def _load_parts(out: Path, settings: dict[str, Any], quiet: bool) -> list[ProposalTable]:
    """The parts, all made with these settings; broken ones are deleted.

    Raises:
        UserError: some were made with other settings.
    """
    found = []
    for file in sorted(parts_folder(out).glob("*.parquet")):
        try:
            part = ProposalTable.open(file)
        except UserError:
            say(f"discarded {file}: it is broken", quiet)
            file.unlink(missing_ok=True)
            continue
        if part.settings != settings:
            raise UserError(
                f"{file.parent}: holds an unfinished run with other settings "
                f"({_differences(part.settings, settings)}); restore these to continue it, give another --out, or "
                "delete that folder"
            )
        found.append(part)
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys[:5])


def _lacking(index: ImageIndex, tables: list[ProposalTable]) -> np.ndarray:
    """Rows of the index, ascending, that no table has."""
    have = pa.chunked_array([t.keys for t in tables], type=pa.large_string())
    return np.flatnonzero(~np.asarray(pc.is_in(index.keys(), value_set=have)))


def _merged(
    index: ImageIndex, old: list[ProposalTable], parts: list[ProposalTable], settings: dict[str, Any]
) -> ProposalTable:
    everything = ProposalTable.concatenate([*old, *parts, ProposalTable.of([], settings)])
    rows = everything.rows_of(index)
    if (rows < 0).any():
        raise UserError(f"{index.key(int(np.argmin(rows)))}: its part has vanished; repeat the command")
    others = [np.flatnonzero(~np.asarray(pc.is_in(t.keys, value_set=index.keys()))) for t in old]
    return everything.take(np.concatenate([rows, *others]))


def _compute(
    index: ImageIndex,
    todo: np.ndarray,
    out: Path,
    compute: Callable[[Block], ProposalTable],
    engine: Engine,
    quiet: bool,
) -> None:
    size = max(1, min(LARGEST_BLOCK, len(todo) // (4 * engine.slots)))
    blocks = (
        [(index.key(i), index.path(i)) for i in todo[at : at + size].tolist()] for at in range(0, len(todo), size)
    )
    folder = parts_folder(out)
    try:
        with progress(len(todo), quiet) as advance, closing(engine.run(compute, blocks)) as finished:
            for block, table in finished:
                _check_seen(block, table)
                digest = hashlib.sha256("\n".join(key for key, _ in block).encode()).hexdigest()
                table.write(folder / f"{digest[:24]}.parquet")
                advance(len(block))
    except WorkerDied as error:
        raise UserError(f"{error}; finished images are kept in {folder}: repeat the command") from error


def compute_block(block: Block, method: Method, settings: dict[str, Any]) -> ProposalTable:
    """Return the rows of a block's images."""
    with _one_thread():
        return ProposalTable.of([_propose(key, path, method) for key, path in block], settings)


def _propose(key: str, path: str, method: Method) -> Row:
    try:
        image = decode(path)
        boxes, fallback = method.propose(image, key)
    except BadImage as error:
        return Row(key, skipped=error.reason)
    except (cv2.error, MemoryError) as error:
        return Row(key, skipped=f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")
    return Row(key, (image.shape[1], image.shape[0]), boxes, fallback)


def _check_seen(block: Block, table: ProposalTable) -> None:
    """Raise `UserError` if a worker on another machine lacked a file that is there, or its folder has vanished."""
    paths = dict(block)
    skipped = dict(table.skipped_images())
    for key in paths.keys() - skipped.keys():
        remember_folder(paths[key])
    for key, reason in skipped.items():
        if reason == "no such file" and _exists_here(paths[key]):
            raise UserError(
                f"{paths[key]}: not there for a worker on another machine; all of a cluster's machines must find the "
                "images under the same path"
            )


def _exists_here(path: str) -> bool:
    try:
        stat(path)
    except OSError:
        return False
    return True


@contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
