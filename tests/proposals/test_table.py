import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.proposals import mapped
from boxless.proposals import table as table_module
from boxless.proposals.table import ProposalTable, Row, settings_hash


def index_of(*keys, root="/nowhere"):
    return ImageIndex({"": str(root)}, pa.array(keys, pa.large_string()))


def boxes_of(key, count):
    return np.arange(4 * count, dtype=np.float32).reshape(-1, 4) + sum(key.encode())


def table_of(counts, settings=None):
    rows = [
        Row(key, skipped="truncated") if count is None else Row(key, (640, 480), boxes_of(key, count), count % 4)
        for key, count in counts.items()
    ]
    return ProposalTable.of(rows, settings or {"method": "test"})


def same(a, b):
    assert a.keys.to_pylist() == b.keys.to_pylist()
    assert a.skipped.to_pylist() == b.skipped.to_pylist()
    assert a.settings == b.settings
    for name in ("sizes", "fallback"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert len(a) == len(b)
    for i in range(len(a)):
        np.testing.assert_array_equal(a.boxes(i), b.boxes(i))


COUNTS = st.dictionaries(st.text("abc/", min_size=1, max_size=4), st.none() | st.integers(0, 4), max_size=9)


@settings(max_examples=30)
@given(COUNTS, st.integers(1, 4))
def test_a_table_survives_the_disk(tmp_path_factory, counts, rows):
    file = tmp_path_factory.mktemp("table") / "p.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "ROWS", rows)  # several row groups, as with a million images
        original = table_of(counts, {"method": "test", "share": [0.3, 0.8], "max_side": None})
        original.write(file)
        same(ProposalTable.open(file), original)
    assert os.listdir(file.parent) == ["p.parquet"]


@settings(max_examples=50)
@given(COUNTS, st.data())
def test_alignment_is_a_look_up(counts, data):
    table = table_of(counts)
    wanted = data.draw(st.permutations(sorted(counts)))[: data.draw(st.integers(0, len(counts)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "ROWS", 3)
        packed = table.aligned_to(index_of(*wanted))
    assert packed.keys.to_pylist() == wanted
    assert packed.counts().dtype == np.int64 and packed.values.dtype == np.float32
    np.testing.assert_array_equal(
        packed.joined(), np.concatenate([packed.values[:0], *map(packed.boxes, range(len(packed)))])
    )
    for i, key in enumerate(wanted):
        np.testing.assert_array_equal(packed.boxes(i), boxes_of(key, counts[key] or 0))
        assert packed.size(i) == (None if counts[key] is None else (640, 480))


def test_images_without_a_row_are_counted_and_get_the_whole_image(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "new.png")
    table = table_of({"a.jpg": 2, "b.jpg": 3})
    index = index_of("a.jpg", "lost.png", "new.png", "z.png", "b.jpg", root=tmp_path)
    packed = table.aligned_to(index)
    assert (table.rows_of(index) < 0).sum() == 3 and packed.keys.to_pylist() == index.keys().to_pylist()
    assert packed.boxes(2).tolist() == [[0, 0, 30, 20]]
    assert len(packed.boxes(1)) == len(packed.boxes(3)) == 0
    assert [packed.size(i) for i in range(5)] == [(640, 480), None, (30, 20), None, (640, 480)]
    np.testing.assert_array_equal(packed.boxes(4), boxes_of("b.jpg", 3))


def test_a_table_of_other_images_is_refused():
    with pytest.raises(UserError, match=r"other images.* 1 of a\.jpg .* 1 of c\.jpg .*boxless propose"):
        table_of({"a.jpg": 1}).aligned_to(index_of("c.jpg"))


def test_joined_rows_are_in_order():
    first, second = {"a": 1, "b": None}, {"c": 2}
    joined = ProposalTable.concatenate([table_of(first), table_of(second)])
    assert joined.keys.to_pylist() == ["a", "b", "c"] and joined.counts().tolist() == [1, 0, 2]
    same(joined, table_of(first | second))
    same(table_of(first | second).take(np.array([2, 0])), table_of({"c": 2, "a": 1}))


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "empty.parquet").touch()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    whole = tmp_path / "whole.parquet"
    table_of({"a": 3}).write(whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    rows = pq.read_table(whole)
    nulls = pa.array([None], pa.int32())
    pq.write_table(rows.set_column(1, rows.schema.field("width"), nulls), tmp_path / "null.parquet")
    for name in ("empty", "other", "cut", "null", "absent"):
        with pytest.raises(UserError, match=f"{name}.parquet: .*boxless propose"):
            ProposalTable.open(tmp_path / f"{name}.parquet")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "p.parquet"
    table_of({"a": 1}).write(file)
    before = file.read_bytes()
    monkeypatch.setattr(ProposalTable, "_arrow", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table_of({"b": 1}).write(file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["p.parquet"]
    assert Path(file).stat().st_mode & 0o044 == 0o044


def test_a_large_table_is_mapped_and_crosses_processes_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "LARGE", 5)
    counts = {"a": 3, "bad": None, "c": 4}
    file, copy = tmp_path / "p.parquet", tmp_path / "p.parquet.mapped"
    table_of(counts).write(file)
    allocated = pa.total_allocated_bytes()
    same(ProposalTable.open(file), table_of(counts))
    assert sorted(os.listdir(tmp_path)) == ["p.parquet", "p.parquet.mapped"]
    with monkeypatch.context() as patched:
        patched.setattr(table_module, "_read", lambda *_: pytest.fail("read the Parquet file again"))
        again = ProposalTable.open(file)
        same(again, table_of(counts))
        assert pa.total_allocated_bytes() <= allocated  # neither names nor boxes were copied
        aligned = again.aligned_to(index_of("c", "a"))
        sent = pickle.dumps(aligned)
        assert aligned.values.tobytes() not in sent
        np.testing.assert_array_equal(pickle.loads(sent).boxes(0), boxes_of("c", 4))
        assert pickle.loads(sent).size(0) == (640, 480)
    aligned.boxes(0)[:] = 0  # what a caller does to its boxes stays with it
    np.testing.assert_array_equal(aligned.boxes(0), boxes_of("c", 4))

    table_of({"a": 5, "d": 2}).write(file)  # the old rows lie mapped beside
    with pytest.raises(UserError, match=r"p.parquet.mapped: was deleted or replaced"):
        ProposalTable.open(file)
        pickle.loads(sent)
    same(ProposalTable.open(file), table_of({"a": 5, "d": 2}))
    for damage in (b"", copy.read_bytes()[:300]):
        copy.write_bytes(damage)
        same(ProposalTable.open(file), table_of({"a": 5, "d": 2}))
    copy.unlink()
    with monkeypatch.context() as patched:  # as on a disk that is full or may not be written to
        patched.setattr(mapped, "written", Mock(side_effect=PermissionError))
        same(ProposalTable.open(file), table_of({"a": 5, "d": 2}))
    assert os.listdir(tmp_path) == ["p.parquet"]


def test_skipped_images_and_the_hash():
    table = table_of({"a": 1, "bad": None})
    assert table.skipped_images() == [("bad", "truncated")]
    assert settings_hash({"a": 1, "b": [2]}) == settings_hash({"b": [2], "a": 1}) != settings_hash({"a": 1, "b": [3]})


def test_a_million_rows_fit_in_arrays():
    count = 1_000_000
    keys = pa.array(np.char.mod("%07d.jpg", np.arange(count)).tolist(), pa.large_string())
    sizes = np.ones((count, 2), np.int32)
    ends = np.arange(1, count + 1)
    table = ProposalTable(
        keys=keys,
        values=np.ones((count, 4), np.float32),
        starts=ends - 1,
        ends=ends,
        sizes=sizes,
        fallback=np.zeros(count, np.int8),
        skipped=pa.nulls(count, pa.large_string()),
        settings={},
    )
    index = ImageIndex({"": "/nowhere"}, keys.take(pa.array(np.arange(count)[::-1].copy())))
    aligned = table.aligned_to(index)
    assert len(aligned) == count and aligned.values.nbytes == 16 * count
    assert aligned.starts.nbytes + aligned.ends.nbytes + aligned.sizes.nbytes == 24 * count
