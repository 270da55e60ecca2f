"""A large table's rows as they lie in memory, in a file beside it: opened at once, and shared by all processes.

Parquet is made for disks: taking 100 million boxes out of it costs half a minute of a core, and 1.6 GB for each process
of a run. `TABLE.mapped` holds the same rows uncompressed and is mapped into memory. It counts as long as the table is
the file that it was made from, and may be deleted at any time; where it cannot be written, time and memory are lost.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from boxless.errors import UserError
from boxless.files import written

Mark = tuple[str, bytes]

LARGE = 2_000_000  # boxes: fewer are read in about two seconds

_STAMP = b"boxless.table"


def mapped_rows(path: str | Path, read: Callable[[], pa.Table], boxes: int) -> pa.Table:
    """Return the rows that `read` reads from the table at `path`, in one chunk; mapped into memory where they are many.

    `boxes`: how many it has, or a little more.
    """
    if boxes < LARGE:
        return read()
    stamp = _stamp(path)
    if (found := _fresh(place_of(path), stamp)) is None:
        rows = read()
        _keep(place_of(path), rows, stamp)
        found = _fresh(place_of(path), stamp) or rows
    return found


def mark_of(path: str | Path, rows: pa.Table) -> Mark | None:
    """Return what finds the rows of the table at `path` again if they are mapped, else None."""
    stamp = (rows.schema.metadata or {}).get(_STAMP)
    return None if stamp is None else (str(place_of(path).absolute()), stamp)


def remapped(mark: Mark) -> pa.Table:
    """Return the rows in another process.

    Raises:
        UserError: the file has been replaced meanwhile.
    """
    if (rows := _fresh(Path(mark[0]), mark[1])) is None:
        raise UserError(f"{mark[0]}: was deleted or replaced while a run was starting; start it again")
    return rows


def place_of(path: str | Path) -> Path:
    """Return where the rows of a table are kept for mapping."""
    return Path(f"{path}.mapped")


def _stamp(path: str | Path) -> bytes:
    facts = os.stat(path)
    return json.dumps([facts.st_size, facts.st_mtime_ns, facts.st_ino]).encode()


def _fresh(file: Path, stamp: bytes) -> pa.Table | None:
    try:
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException):  # absent or broken
        return None
    return rows if (rows.schema.metadata or {}).get(_STAMP) == stamp else None


def _keep(file: Path, rows: pa.Table, stamp: bytes) -> None:
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), _STAMP: stamp})
    try:
        with written(file, alone=False) as partial, pa.ipc.new_file(str(partial), rows.schema) as writer:
            writer.write_table(rows)
    except (OSError, UserError):
        pass
