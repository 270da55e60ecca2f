"""Proposals on disk: one Parquet file, one row per image.

Columns: key string, width and height int32 px (0 where skipped), boxes list<float32> (x1 y1 x2 y2 x1 ... source px),
fallback int8 (`limits.keep_fitting`), skipped string (why the image could not be used, else null). The schema's
metadata holds the settings as JSON under `boxless.proposals`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxless.data.annotations.types import COORDINATE_LIMIT
from boxless.data.images import BadImage, image_size
from boxless.errors import UserError
from boxless.files import written
from boxless.proposals.limits import Array, whole_image
from boxless.proposals.mapped import Mark, mapped_rows, mark_of
from boxless.proposals.packed import PackedBoxes, values_of
from boxless.untrusted import parse_json

ROWS = 16384  # per row group, so that a group's boxes stay far below the 2^31 values of an Arrow list

_METADATA = b"boxless.proposals"
_FIELDS = [
    pa.field("key", pa.large_string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("boxes", pa.list_(pa.float32())),
    pa.field("fallback", pa.int8()),
    pa.field("skipped", pa.large_string()),
]


class Index(Protocol):
    """Images by row: `boxless.data.index.ImageIndex`."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The name of a row."""

    def keys(self) -> Any:
        """All names, a pyarrow array of strings."""

    def path(self, i: int) -> str:
        """The file of a row."""


@dataclass(frozen=True, eq=False)
class ProposalTable:
    """Proposals of N images in memory; row i of all attributes is one image.

    Attributes:
        keys: N names, a pyarrow array of strings.
        packed: the boxes, and the sizes of their images.
        fallback: (N,) int8, steps back from the limits.
        skipped: N reasons or nulls, a pyarrow array of strings.
        settings: settings that made the boxes, JSON values.
    """

    keys: Any
    packed: PackedBoxes
    fallback: NDArray[np.int8]
    skipped: Any
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2), (W, H) px; 0 where skipped."""
        return self.packed.sizes

    @cached_property
    def settings_hash(self) -> str:
        """16 hex digits that depend on the settings alone."""
        return settings_hash(self.settings)

    def skipped_images(self) -> list[tuple[str, str]]:
        """Return (key, reason) of the images that could not be used."""
        bad = pc.is_valid(self.skipped)
        return list(zip(self.keys.filter(bad).to_pylist(), self.skipped.filter(bad).to_pylist(), strict=True))

    @classmethod
    def open(cls, path: str | Path) -> "ProposalTable":
        """Read a table; raises `UserError` if the file is missing, broken or something else."""
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                settings = parse_json((file.schema_arrow.metadata or {})[_METADATA])
                if type(settings) is not dict or any(file.schema_arrow.field(f.name).type != f.type for f in _FIELDS):
                    raise ValueError("its columns or settings are of other types")
                column = file.schema_arrow.get_field_index("boxes")
                groups = (file.metadata.row_group(i).column(column) for i in range(file.num_row_groups))
                values = sum(group.num_values for group in groups)
                rows = mapped_rows(path, lambda: _read(file, values), values // 4)
                return cls._of(rows, settings, mark_of(path, rows))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; make it with `boxless propose`") from error
        except (OSError, LookupError, ValueError, MemoryError, pa.ArrowException) as error:
            message = f"{path}: broken, or no table of proposals; delete it and make it again with `boxless propose`"
            raise UserError(message) from error

    @classmethod
    def _of(cls, rows: pa.Table, settings: dict[str, Any], mark: Mark | None) -> "ProposalTable":
        columns = {name: rows[name].chunk(0) for name in rows.column_names}
        offsets = np.asarray(columns["boxes"].offsets) // 4
        sizes = np.stack([columns["width"].to_numpy(), columns["height"].to_numpy()], axis=1)
        return cls(
            keys=columns["key"],
            packed=PackedBoxes(values_of(rows), offsets[:-1], offsets[1:], sizes, mark=mark),
            fallback=columns["fallback"].to_numpy(),
            skipped=columns["skipped"],
            settings=settings,
        )

    def write(self, path: str | Path) -> None:
        """Write the table, atomically; equal tables give equal bytes."""
        metadata = {_METADATA: json.dumps(self.settings, sort_keys=True).encode()}
        schema = pa.schema(_FIELDS, metadata=metadata)
        with (
            written(Path(path)) as partial,
            pq.ParquetWriter(
                partial, schema, compression="zstd", use_dictionary=["skipped"], write_page_checksum=True
            ) as writer,
        ):
            for start in range(0, len(self), ROWS):
                writer.write_table(self._arrow(start, min(start + ROWS, len(self)), schema))

    def _arrow(self, start: int, end: int, schema: pa.Schema) -> pa.Table:
        packed = self.packed.take(np.arange(start, end))
        offsets = np.concatenate([[0], np.cumsum(packed.counts())]) * 4
        columns = [
            self.keys[start:end],
            pa.array(self.sizes[start:end, 0]),
            pa.array(self.sizes[start:end, 1]),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(packed.joined().reshape(-1))),
            pa.array(self.fallback[start:end]),
            self.skipped[start:end],
        ]
        return pa.table(columns, schema=schema)

    @staticmethod
    def concatenate(tables: Sequence["ProposalTable"]) -> "ProposalTable":
        """Return the rows of all `tables`, at least one, of equal settings, in their order."""
        before = np.cumsum([0, *(len(t.packed.values) for t in tables)])
        return ProposalTable(
            keys=pa.concat_arrays([t.keys for t in tables]),
            packed=PackedBoxes(
                np.concatenate([t.packed.values for t in tables]),
                np.concatenate([t.packed.starts + at for t, at in zip(tables, before, strict=False)]),
                np.concatenate([t.packed.ends + at for t, at in zip(tables, before, strict=False)]),
                np.concatenate([t.sizes for t in tables]),
            ),
            fallback=np.concatenate([t.fallback for t in tables]),
            skipped=pa.concat_arrays([t.skipped for t in tables]),
            settings=tables[0].settings,
        )

    def take(self, rows: NDArray[np.int64]) -> "ProposalTable":
        """Return the images at `rows`, in their order."""
        chosen = pa.array(rows)
        return ProposalTable(
            keys=self.keys.take(chosen),
            packed=self.packed.take(rows),
            fallback=self.fallback[rows],
            skipped=self.skipped.take(chosen),
            settings=self.settings,
        )

    def rows_of(self, index: Index) -> NDArray[np.int64]:
        """Return (N,) the row of each of the index's N images, -1 where there is none."""
        keys = index.keys().cast(pa.large_string())
        return np.asarray(pc.fill_null(pc.index_in(keys, value_set=self.keys), -1)).astype(np.int64)

    def aligned_to(self, index: Index) -> PackedBoxes:
        """Return the boxes in the order of the index's images.

        Images without a row get one box, the whole image (its size is read from the file), and are counted in
        `missing`. Images that were skipped have no boxes.

        Raises:
            UserError: no image of the index has a row, so the table belongs to other images.
        """
        rows = self.rows_of(index)
        missing = np.flatnonzero(rows < 0)
        if len(index) and len(missing) == len(index):
            raise UserError(f"the proposals belong to other images: {self._mismatch(index)}; run `boxless propose`")
        if not len(missing):
            return self.packed.take(rows)
        found = np.array([_size(index.path(int(i))) for i in missing], np.int32)
        whole = [whole_image(*size) for size in found.tolist() if all(size)]
        rows[missing] = len(self) + np.arange(len(missing))
        none = np.zeros((0, 4), np.float32)
        others = PackedBoxes.end_to_end(np.concatenate([none, *whole]), np.asarray(found.all(1), np.int64), found)
        at = len(self.packed.values)
        starts = np.concatenate([self.packed.starts, others.starts + at])
        ends = np.concatenate([self.packed.ends, others.ends + at])
        values = np.concatenate([self.packed.values, others.values])
        sizes = np.concatenate([self.sizes, others.sizes])
        return PackedBoxes(values, starts[rows], ends[rows], sizes[rows], len(missing))

    def _mismatch(self, index: Index) -> str:
        ours = f"{len(self)} of {self.keys[0].as_py()} ..." if len(self) else "none"
        return f"the table has {ours}, the data {len(index)} of {index.key(0)} ..."


class TableBuilder:
    """Collects rows in lists: for the few images of a part."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._rows: list[tuple[str, tuple[int, int], Array, int, str | None]] = []

    def add(self, key: str, size: tuple[int, int], boxes: Array, fallback: int = 0) -> None:
        """Append an image of `size` (W, H) px with its boxes (N, 4)."""
        self._rows.append((key, size, boxes, fallback, None))

    def skip(self, key: str, reason: str) -> None:
        """Append an image that could not be used."""
        self._rows.append((key, (0, 0), np.zeros((0, 4), np.float32), 0, reason))

    def table(self) -> ProposalTable:
        """Return the table of all rows so far."""
        boxes = [row[2] for row in self._rows]
        values = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
        sizes = np.array([row[1] for row in self._rows], np.int32).reshape(-1, 2)
        return ProposalTable(
            keys=pa.array([row[0] for row in self._rows], pa.large_string()),
            packed=PackedBoxes.end_to_end(values, np.array([len(b) for b in boxes], np.int64), sizes),
            fallback=np.array([row[3] for row in self._rows], np.int8),
            skipped=pa.array([row[4] for row in self._rows], pa.large_string()),
            settings=self._settings,
        )


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on the settings (JSON values) alone."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: pq.ParquetFile, most: int) -> pa.Table:
    """All rows in one chunk; `most`: numbers in the column of boxes, where images without boxes count as one."""
    facts = file.read(["key", "width", "height", "fallback", "skipped"])
    values = np.empty(most, np.float32)
    lengths = [np.zeros(1, np.int64)]
    end = 0
    for group in range(file.num_row_groups):
        boxes = file.read_row_group(group, ["boxes"])["boxes"].combine_chunks()
        flat = boxes.flatten().to_numpy(zero_copy_only=False)
        _check(boxes, flat)
        values[end : end + len(flat)] = flat
        lengths.append(np.asarray(boxes.value_lengths()).astype(np.int64))
        end += len(flat)
    offsets = pa.array(np.cumsum(np.concatenate(lengths)))
    columns = {name: facts[name].combine_chunks() for name in facts.column_names}
    return pa.table({**columns, "boxes": pa.LargeListArray.from_arrays(offsets, pa.array(values[:end]))})


def _check(boxes: pa.ListArray, flat: NDArray[np.float32]) -> None:
    if boxes.null_count or (np.asarray(boxes.value_lengths()) % 4).any():
        raise ValueError("an entry is no list of boxes")
    corners = flat.reshape(-1, 4)
    # Said so that NaN fails too.
    if not (
        (corners[:, :2] >= 0).all() and (corners[:, 2:] > corners[:, :2]).all() and (flat < COORDINATE_LIMIT).all()
    ):
        raise ValueError("a box is none")


def _size(path: str) -> tuple[int, int]:
    try:
        return image_size(path)
    except BadImage:
        return 0, 0
