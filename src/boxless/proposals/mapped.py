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

Mapping = tuple[str, bytes]
"""The mapped file, and what the table that it was made from is told by."""

_STAMP = b"boxless.table"


def mapped_rows(path: str | Path, read: Callable[[], pa.Table]) -> tuple[pa.Table, Mapping | None]:
    """Return the rows that `read` reads from the table at `path`, in one chunk, mapped into memory if that goes."""
    facts = os.stat(path)
    stamp = json.dumps([facts.st_size, facts.st_mtime_ns, facts.st_ino]).encode()
    mapping = str(Path(f"{path}.mapped").absolute()), stamp
    if (found := _load(mapping)) is not None:
        return found, mapping
    rows = read()
    stamped = rows.replace_schema_metadata({**(rows.schema.metadata or {}), _STAMP: stamp})
    try:
        with written(Path(mapping[0]), alone=False) as partial, pa.ipc.new_file(str(partial), stamped.schema) as writer:
            writer.write_table(stamped)
    except (OSError, UserError):
        return rows, None
    found = _load(mapping)
    return (rows, None) if found is None else (found, mapping)


def remapped(mapping: Mapping) -> pa.Table:
    """Return the rows in another process.

    Raises:
        UserError: the file has been replaced meanwhile.
    """
    if (rows := _load(mapping)) is None:
        raise UserError(f"{mapping[0]}: was deleted or replaced while a run was starting; start it again")
    return rows


def _load(mapping: Mapping) -> pa.Table | None:
    file, stamp = mapping
    try:
        with pa.memory_map(file) as source:
            rows = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException):  # absent or broken
        return None
    return rows if (rows.schema.metadata or {}).get(_STAMP) == stamp else None
