"""Proposals: one Parquet file, one row per image, and in memory a few arrays that processes can share.

Columns: key string, width and height int32 px (0 where skipped), boxes list<float32> (x1 y1 x2 y2 x1 ... source px),
fallback int8 (`limits.keep_fitting`), skipped string (why the image could not be used, else null). The schema's
metadata holds the settings as JSON under `boxless.proposals`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxless.data.annotations.types import COORDINATE_LIMIT
from boxless.data.images import BadImage, image_size
from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.files import written
from boxless.proposals.limits import Array, whole_image
from boxless.untrusted import parse_json

LARGE = 2_000_000
"""Boxes from which on a table is mapped into memory, see `mapped.py`; fewer are read in about two seconds."""
ROWS = 16384
"""Images of a row group, so that its boxes stay far below the 2^31 values of an Arrow list."""

_METADATA = b"boxless.proposals"
_FIELDS = [
    pa.field("key", pa.large_string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("boxes", pa.list_(pa.float32())),
    pa.field("fallback", pa.int8()),
    pa.field("skipped", pa.large_string()),
]
_NO_BOXES = np.zeros((0, 4), np.float32)


class Row(NamedTuple):
    """An image and its proposals.

    Attributes:
        key: name of the image.
        size: (W, H) px; 0 if it could not be used.
        boxes: (N, 4), source px xyxy.
        fallback: steps back from the limits, see `limits.keep_fitting`.
        skipped: why it could not be used.
    """

    key: str
    size: tuple[int, int] = (0, 0)
    boxes: Array = _NO_BOXES
    fallback: int = 0
    skipped: str | None = None


@dataclass(frozen=True, eq=False)
class ProposalTable:
    """Proposals of N images; row i of all attributes but `values` is one image.

    Attributes:
        keys: N names, a pyarrow array of strings.
        values: (T, 4) float32, source px xyxy; the boxes of all images, perhaps mapped from a file (`mapped.py`).
        starts: (N,) int64; image i owns the boxes `starts[i]` to `ends[i]`.
        ends: (N,) int64.
        sizes: (N, 2) int32, (W, H) px of the images that the boxes are of; 0 where skipped.
        fallback: (N,) int8, steps back from the limits.
        skipped: N reasons or nulls, a pyarrow array of strings.
        settings: settings that made the boxes, JSON values.
        mapping: file that `values` are mapped from, by which they cross to other processes, or None.
    """

    keys: Any
    values: Array
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int32]
    fallback: NDArray[np.int8]
    skipped: Any
    settings: dict[str, Any]
    mapping: tuple[str, bytes] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        values = None if self.mapping else self.values
        columns = self.keys, values, self.starts, self.ends, self.sizes, self.fallback, self.skipped
        return _unpickled, (*columns, self.settings, self.mapping)

    def boxes(self, i: int) -> Array:
        """Return the boxes (N, 4) of image i, a copy; none if it could not be read."""
        return self.values[self.starts[i] : self.ends[i]].copy()

    def size(self, i: int) -> tuple[int, int] | None:
        """Return (W, H) px of the image that the boxes of image i are of; None if it could not be read."""
        width, height = self.sizes[i].tolist()
        return (width, height) if width else None

    def counts(self) -> NDArray[np.int64]:
        """Return the number of boxes of each image, (N,)."""
        return self.ends - self.starts

    def joined(self) -> Array:
        """Return the boxes of image after image, (T, 4): those of `values` that any image owns."""
        counts = self.counts()
        first = np.repeat(self.ends - np.cumsum(counts), counts)
        boxes: Array = self.values[first + np.arange(len(first))]
        return boxes

    def skipped_images(self) -> list[tuple[str, str]]:
        """Return (key, reason) of the images that could not be used."""
        bad = pc.is_valid(self.skipped)
        return list(zip(self.keys.filter(bad).to_pylist(), self.skipped.filter(bad).to_pylist(), strict=True))

    @classmethod
    def of(cls, rows: Sequence[Row], settings: Mapping[str, Any]) -> "ProposalTable":
        """Return the table of a few images."""
        ends = np.cumsum([len(row.boxes) for row in rows], dtype=np.int64)
        return cls(
            keys=pa.array([row.key for row in rows], pa.large_string()),
            values=np.concatenate([_NO_BOXES, *(row.boxes for row in rows)]),
            starts=np.concatenate([np.zeros(1, np.int64), ends])[: len(rows)],
            ends=ends,
            sizes=np.array([row.size for row in rows], np.int32).reshape(-1, 2),
            fallback=np.array([row.fallback for row in rows], np.int8),
            skipped=pa.array([row.skipped for row in rows], pa.large_string()),
            settings=dict(settings),
        )

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
                if values // 4 < LARGE:
                    rows, mapping = _read(file, values), None
                else:
                    from boxless.proposals.mapped import mapped_rows

                    rows, mapping = mapped_rows(path, lambda: _read(file, values))
                return cls._of(rows, settings, mapping)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; make it with `boxless propose`") from error
        except (OSError, LookupError, ValueError, MemoryError, pa.ArrowException) as error:
            message = f"{path}: broken, or no table of proposals; delete it and make it again with `boxless propose`"
            raise UserError(message) from error

    @classmethod
    def _of(cls, rows: pa.Table, settings: dict[str, Any], mapping: tuple[str, bytes] | None) -> "ProposalTable":
        columns = {name: rows[name].chunk(0) for name in rows.column_names}
        offsets = np.asarray(columns["boxes"].offsets) // 4
        return cls(
            keys=columns["key"],
            values=_values_of(rows),
            starts=offsets[:-1],
            ends=offsets[1:],
            sizes=np.stack([columns["width"].to_numpy(), columns["height"].to_numpy()], axis=1),
            fallback=columns["fallback"].to_numpy(),
            skipped=columns["skipped"],
            settings=settings,
            mapping=mapping,
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
                writer.write_table(self.take(np.arange(start, min(start + ROWS, len(self))))._arrow(schema))

    def _arrow(self, schema: pa.Schema) -> pa.Table:
        offsets = np.concatenate([[0], np.cumsum(self.counts())]) * 4
        boxes = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(self.joined().reshape(-1)))
        sizes = pa.array(self.sizes[:, 0]), pa.array(self.sizes[:, 1])
        return pa.table([self.keys, *sizes, boxes, pa.array(self.fallback), self.skipped], schema=schema)

    @staticmethod
    def concatenate(tables: Sequence["ProposalTable"]) -> "ProposalTable":
        """Return the rows of all `tables`, at least one, of equal settings, in their order."""
        before = np.cumsum([0, *(len(t.values) for t in tables)])
        return ProposalTable(
            keys=pa.concat_arrays([t.keys for t in tables]),
            values=np.concatenate([t.values for t in tables]),
            starts=np.concatenate([t.starts + at for t, at in zip(tables, before, strict=False)]),
            ends=np.concatenate([t.ends + at for t, at in zip(tables, before, strict=False)]),
            sizes=np.concatenate([t.sizes for t in tables]),
            fallback=np.concatenate([t.fallback for t in tables]),
            skipped=pa.concat_arrays([t.skipped for t in tables]),
            settings=tables[0].settings,
        )

    def take(self, rows: NDArray[np.int64]) -> "ProposalTable":
        """Return the images at `rows`, in their order; no box is copied."""
        chosen = pa.array(rows)
        return ProposalTable(
            keys=self.keys.take(chosen),
            values=self.values,
            starts=self.starts[rows],
            ends=self.ends[rows],
            sizes=self.sizes[rows],
            fallback=self.fallback[rows],
            skipped=self.skipped.take(chosen),
            settings=self.settings,
            mapping=self.mapping,
        )

    def rows_of(self, index: ImageIndex) -> NDArray[np.int64]:
        """Return (N,) the row of each of the index's N images, -1 if there is none."""
        return np.asarray(pc.fill_null(pc.index_in(index.keys(), value_set=self.keys), -1)).astype(np.int64)

    def aligned_to(self, index: ImageIndex) -> "ProposalTable":
        """Return the proposals in the order of the index's images.

        Images without a row get one box, the whole image (its size is read from the file). Images that were skipped
        have no boxes.

        Raises:
            UserError: no image of the index has a row, so the table belongs to other images.
        """
        rows = self.rows_of(index)
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return self.take(rows)
        if len(missing) == len(index):
            ours = f"{len(self)} of {self.keys[0].as_py()} ..." if len(self) else "none"
            raise UserError(
                f"the proposals belong to other images: the table has {ours}, the data {len(index)} of {index.key(0)} "
                "...; run `boxless propose`"
            )
        others = ProposalTable.of([_whole(index, row) for row in missing.tolist()], self.settings)
        rows[missing] = len(self) + np.arange(len(missing))
        return ProposalTable.concatenate([self, others]).take(rows)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on the settings (JSON values) alone."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _whole(index: ImageIndex, row: int) -> Row:
    try:
        size = image_size(index.path(row))
    except BadImage as error:
        return Row(index.key(row), skipped=error.reason)
    return Row(index.key(row), size, whole_image(*size), 3)


def _values_of(rows: pa.Table) -> Array:
    """Return the boxes (T, 4) of a table's rows, which lie in one chunk; not a copy."""
    values: Array = rows["boxes"].chunk(0).values.to_numpy().reshape(-1, 4)
    return values


def _unpickled(keys: Any, values: Array | None, *others: Any) -> ProposalTable:
    if values is None:
        from boxless.proposals.mapped import remapped

        values = _values_of(remapped(others[-1]))
    return ProposalTable(keys, values, *others)


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
