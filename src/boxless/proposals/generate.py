"""From images to a table of proposals on all cores; a run that is stopped, even by kill -9, goes on where it was.

Workers compute blocks of images, here or on other machines (`boxless.parallel`); each finished block is kept as a part
(`parts.py`), and at the end the parts become one table in the order of the index. A row depends on its image and the
settings alone, so neither the number of workers nor any interruption changes the table.
"""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
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
from boxless.data.retry import remember, status
from boxless.errors import UserError
from boxless.files import in_words, make_folder
from boxless.parallel import Engine, LocalProcesses, WorkerDied
from boxless.proposals.grid import Grid
from boxless.proposals.parts import Parts, differences
from boxless.proposals.progress import progress
from boxless.proposals.random_boxes import RandomBoxes
from boxless.proposals.selective_search import PRESETS, SelectiveSearch
from boxless.proposals.table import Index, ProposalTable, TableBuilder

Method = SelectiveSearch | Grid | RandomBoxes
Block = list[tuple[str, str]]  # (key, path)

LARGEST_BLOCK = 64  # images: what a kill may cost each worker


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
    index: Index,
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
    out = Path(out)
    parts = Parts(out)
    with parts.locked(), in_words(out):
        return _make(index, out, parts, method, workers, quiet, engine)


def _make(
    index: Index, out: Path, parts: Parts, method: Method, workers: int | None, quiet: bool, engine: Engine | None
) -> Produced:
    settings = settings_of(method)
    say = _silent if quiet else _say
    old = existing(out, index, settings)
    finished = parts.load(settings, say)
    if finished:
        say(f"{out}: going on with {sum(map(len, finished))} images of an earlier run")
    todo = _lacking(index, [*old, *finished])
    started = time.monotonic()
    if len(todo):
        make_folder(parts.folder)
        engine = engine or LocalProcesses(min(workers or available_cores(), len(todo)))
        _compute(index, todo, method, settings, parts, engine, quiet)
        finished = parts.load(settings, say)
    if finished or not old:
        _merged(index, old, finished, settings).write(out)
        table = ProposalTable.open(out)  # as training will, which makes what is mapped of a large one
    else:
        table = old[0]
        say(f"{out}: nothing to do, it has all {len(index)} images")
    parts.remove()
    return Produced(out, table, len(todo), time.monotonic() - started)


def ensure_proposals(
    index: Index, out: str | Path, method: Method | None = None, workers: int | None = None, quiet: bool = False
) -> ProposalTable:
    """Return the table at `out`, made or completed where it lacks images of the index; the call that training makes.

    Without `method` a complete table is taken whatever its settings are, and anything to be made uses the preset
    `fast`. Of a distributed run only one process may call it: two at once would remove each other's parts.

    Raises:
        UserError: as `make_proposals`.
    """
    if method is None and Path(out).exists():
        table = ProposalTable.open(out)
        if not len(_lacking(index, [table])):
            return table
    return make_proposals(index, out, method or PRESETS["fast"], workers, quiet).table


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def existing(out: Path, index: Index, settings: dict[str, Any]) -> list[ProposalTable]:
    """Return the table at `out`, if any; raises `UserError` unless these settings made it for some of these images."""
    if not out.exists():
        return []
    table = ProposalTable.open(out)
    if table.settings != settings:
        changed = differences(table.settings, settings)
        raise UserError(f"{out}: made with other settings ({changed}); give another --out or delete it")
    if len(table) and len(index) and (table.rows_of(index) < 0).all():
        raise UserError(f"{out}: belongs to other images ({table.keys[0].as_py()} ...); give another --out")
    return [table]


def _lacking(index: Index, tables: list[ProposalTable]) -> np.ndarray:
    """Rows of the index, ascending, that no table has."""
    keys = index.keys().cast(pa.large_string())
    have = pa.chunked_array([t.keys for t in tables], type=pa.large_string())
    return np.flatnonzero(~np.asarray(pc.is_in(keys, value_set=have)))


def _merged(
    index: Index, old: list[ProposalTable], parts: list[ProposalTable], settings: dict[str, Any]
) -> ProposalTable:
    everything = ProposalTable.concatenate([*old, *parts, TableBuilder(settings).table()])
    rows = everything.rows_of(index)
    if (rows < 0).any():
        raise UserError(f"{index.key(int(np.argmin(rows)))}: its part has vanished; run the same command again")
    others = [
        np.flatnonzero(~np.asarray(pc.is_in(t.keys, value_set=index.keys().cast(pa.large_string())))) for t in old
    ]
    return everything.take(np.concatenate([rows, *others]))


def _compute(
    index: Index, todo: np.ndarray, method: Method, settings: dict[str, Any], parts: Parts, engine: Engine, quiet: bool
) -> None:
    size = max(1, min(LARGEST_BLOCK, len(todo) // (4 * engine.slots)))
    blocks = (
        [(index.key(i), index.path(i)) for i in todo[at : at + size].tolist()] for at in range(0, len(todo), size)
    )
    compute = partial(compute_block, method=method, settings=settings)
    try:
        with progress(len(todo), quiet) as advance, closing(engine.run(compute, blocks)) as finished:
            for block, table in finished:
                _check_seen(block, table)
                table.write(parts.file_of([key for key, _ in block]))
                advance(len(block))
    except WorkerDied as error:
        raise UserError(f"{error}; finished images are kept in {parts.folder}: run the same command again") from error


def compute_block(block: Block, method: Method, settings: dict[str, Any]) -> ProposalTable:
    """Return the rows of a block's images."""
    rows = TableBuilder(settings)
    with _one_thread():
        for key, path in block:
            try:
                image = decode(path)
                boxes, fallback = method.propose(image, key)
            except BadImage as error:
                rows.skip(key, error.reason)
            except (cv2.error, MemoryError) as error:
                rows.skip(key, f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")
            else:
                rows.add(key, (image.shape[1], image.shape[0]), boxes, fallback)
    return rows.table()


def _check_seen(block: Block, table: ProposalTable) -> None:
    """Raise `UserError` where a worker on another machine lacked a file that is there, or its folder has vanished."""
    paths = dict(block)
    skipped = dict(table.skipped_images())
    for key in paths.keys() - skipped.keys():
        remember(paths[key])
    for key, reason in skipped.items():
        if reason == "no such file" and _exists_here(paths[key]):
            raise UserError(
                f"{paths[key]}: not there for a worker on another machine; all of a cluster's machines must find the "
                "images under the same path"
            )


def _exists_here(path: str) -> bool:
    try:
        status(path)
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


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _silent(message: str) -> None:
    pass
