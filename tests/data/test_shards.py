"""Shards hold the very bytes of the images, are read like a folder, and say where they are not as they were packed."""

import functools
import gc
import http.server
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bad_images import write_bad_images
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from boxless.commands.pack import pack
from boxless.data.images import BadImage, decode, image_size
from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.data.sampler import make_sampler
from boxless.data.shards import files as shard_files
from boxless.data.shards.read import ShardIndex, open_shards
from boxless.data.shards.sampler import mixed_rows
from boxless.errors import UserError
from boxless.proposals.baselines import Grid
from boxless.proposals.generate import make_proposals

SHARDS = 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_files, "PAUSES", (0.0,))


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """24 photographs: their `folder`, their `index` and their shards with proposals, `packed`."""
    out = tmp_path_factory.mktemp("photos")
    (out / "images" / "sub.folder").mkdir(parents=True)
    for n, file in enumerate(sorted((shared_data / "coco256" / "images" / "val").iterdir())[:24]):
        (out / "images" / ("sub.folder" if n % 2 else "") / file.name).symlink_to(file)
    index = index_images(out / "images", cache=out / "cache")
    boxes = make_proposals(index, out / "p.parquet", Grid(), workers=1, quiet=True).table.aligned_to(index)
    total = sum(file.stat().st_size for file in out.rglob("*.jpg"))
    pack(str(out / "images"), str(out / "packed"), str(out / "p.parquet"), 1 + total // SHARDS // 10**6, quiet=True)
    return SimpleNamespace(folder=out / "images", index=index, boxes=boxes, packed=out / "packed")


@pytest.fixture
def copy(photos: SimpleNamespace, tmp_path: Path) -> Path:
    """The shards of `photos`, to break."""
    (tmp_path / "copy").mkdir()
    for file in photos.packed.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "copy"


@pytest.fixture
def server(copy: Path) -> Iterator[SimpleNamespace]:
    """The copy behind a `url`; `asked` counts what was fetched."""
    asked: Counter[str] = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path[1:]] += 1
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=copy)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}", asked=asked)
        httpd.shutdown()


def test_tar_files_hold_the_images_bytes_and_what_is_known(photos: SimpleNamespace) -> None:
    manifest = json.loads((photos.packed / "manifest.json").read_text())
    assert len(manifest["shards"]) >= 2 and manifest["proposals"]["method"] == "grid"
    found = []
    for entry in manifest["shards"]:
        with tarfile.open(photos.packed / entry["file"]) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
            assert all(member.isreg() and member.mtime == member.uid == 0 for member in tar)
        assert os.stat(photos.packed / entry["file"]).st_size == entry["bytes"] <= 10**6
        assert [name.partition(".")[2] for name in files] == ["jpg", "proposals.npy", "json"] * entry["images"]
        for name in (name.partition(".")[0] for name in list(files)[::3]):
            key = json.loads(files[f"{name}.json"])["key"]
            assert files[f"{name}.jpg"] == (photos.folder / key).read_bytes()
            found.append(key)
    assert found != sorted(found) == photos.index.keys().to_pylist()  # dealt at random, each once


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(photos: SimpleNamespace) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    shards = sorted(str(file) for file in photos.packed.glob("*.tar"))
    seen = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        seen[sample["json"]["key"]] = sample["jpg"], sample["proposals.npy"]
    assert sorted(seen) == photos.index.keys().to_pylist()
    for row, (image, boxes) in enumerate(seen[key] for key in sorted(seen)):
        assert np.array_equal(image, decode(photos.index.path(row)))
        assert np.array_equal(boxes, photos.boxes.boxes(row))
    gc.collect()  # the package leaves files open, which only this test may ignore


def test_index_of_shards_is_that_of_the_folder(photos: SimpleNamespace) -> None:
    index = index_images(photos.packed)
    assert isinstance(index, ShardIndex) and index.keys().equals(photos.index.keys())
    assert index.fingerprint == photos.index.fingerprint and index.content != index.subset([5, 2]).content
    for row in range(len(index)):
        assert image_size(index.path(row)) == image_size(photos.index.path(row))
        assert np.array_equal(decode(index.path(row)), decode(photos.index.path(row)))
        assert np.array_equal(index.boxes(row), photos.boxes.boxes(row))
    assert index.subset([5, 2]).path(1) == index.path(2) == f"{photos.packed}/{shard_of(index, 2)}/{index.key(2)}"


def shard_of(index: ShardIndex, row: int) -> str:
    return Path(index.sample(row).shard.place).name


def test_odd_and_broken_images_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    write_bad_images(tmp_path / "odd")
    files = index_images(tmp_path / "odd")
    (tmp_path / "gone.lst").write_text("\n".join([*(f"odd/{key}" for key in files.keys().to_pylist()), "odd/gone.jpg"]))
    result = pack(str(tmp_path / "gone.lst"), str(tmp_path / "packed"), shard_mb=1, quiet=True)
    assert result.left_out == [("odd/gone.jpg", "No such file or directory")]
    packed = index_images(tmp_path / "packed" / "manifest.json")
    assert len(packed) == len(files) == result.images
    for row in range(len(files)):
        try:
            pixels = decode(files.path(row))
        except BadImage as error:
            with pytest.raises(BadImage) as raised:
                decode(packed.path(row))
            assert raised.value.reason == error.reason and raised.value.path == packed.path(row)
        else:
            assert np.array_equal(decode(packed.path(row)), pixels)


def test_labels_go_into_the_shards(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "coco256" / "annotations" / "instances_val.json"
    pack(str(file), str(tmp_path / "packed"), quiet=True)
    truth = json.loads(file.read_text())
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    index = open_shards(tmp_path / "packed")
    assert [entry["name"] for entry in index.categories] == [entry["name"] for entry in truth["categories"]]
    for row in range(len(index)):
        facts = json.loads(index.sample(row).members()["json"])
        theirs = by_image.pop(facts["image_id"])
        assert [a["category_id"] for a in facts["annotations"]] == [a["category_id"] for a in theirs]
        boxes = [[a["bbox"] for a in each] for each in (facts["annotations"], theirs)]
        np.testing.assert_allclose(*(np.reshape(each, (-1, 4)) for each in boxes), atol=1.0)
    assert not by_image


def test_a_shard_that_is_not_as_it_was_packed_is_named(photos: SimpleNamespace, copy: Path) -> None:
    name = "shard-000001.tar"
    content = (copy / name).read_bytes()
    index = open_shards(copy)
    row = next(row for row in range(len(index)) if shard_of(index, row) == name)
    middle = index.sample(row).offset + 2000
    (copy / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(UserError, match=f"{name}: altered since it was packed: wrong checksum"):
        decode(index.path(row))
    (copy / name).write_bytes(content[:-100_000])
    with pytest.raises(UserError, match=f"{name}: cut short: .* of .* bytes; copy it again"):
        open_shards(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        open_shards(copy)
    with pytest.raises(UserError, match=f"{name}: missing"):  # lost while a run goes on
        decode(index.path(row))
    pack(str(photos.folder), str(copy), str(photos.folder.parent / "p.parquet"), 1, quiet=True)
    assert (copy / name).read_bytes() == content  # mended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="boxless shards 9"), "not the manifest of shards .*boxless shards 9"),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "broken .*etc/passwd"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "broken .*etc/passwd"),
        (lambda m: m["shards"][0].pop("sha256"), "broken .*sha256"),
        (lambda m: m["index"].update(sha256="0" * 64), r"index\.arrow: altered"),
    ],
)
def test_a_broken_manifest_is_named(copy: Path, change, message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        open_shards(copy)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    buffer=st.integers(1, 5),
    batch=st.integers(1, 4),
    world=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_mixed_rows_come_once_from_few_shards(sizes, buffer, batch, world, seed) -> None:
    shard_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = mixed_rows(shard_of, buffer, batch, world, np.random.default_rng(seed))
    assert np.array_equal(rows, mixed_rows(shard_of, buffer, batch, world, np.random.default_rng(seed)))
    whole = batch * world
    if len(shard_of) < whole:
        assert sorted(rows) == list(range(len(shard_of)))
        return
    assert len(np.unique(rows)) == len(rows) == len(shard_of) // whole * whole
    shares = rows.reshape(-1, world, batch)
    read = Counter()
    for rank in range(world):
        shards = shard_of[shares[:, rank].reshape(-1)]
        spans = [np.flatnonzero(shards == shard)[[0, -1]] for shard in np.unique(shards)]
        live = [sum(first <= at <= last for first, last in spans) for at in range(len(shards))]
        assert max(live) <= buffer + 1
        read.update(np.unique(shards).tolist())
    assert sum(read.values()) <= len(sizes) + world - 1  # only shards at the borders of shares are read twice


class Keys(Dataset[tuple[str, int]]):
    """What a worker reads of a row: its key as the shard has it."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __getitem__(self, place: tuple[int, int]) -> tuple[str, int]:
        members = self.index.sample(place[1]).members()
        return json.loads(members["json"])["key"], place[0]


def keys_seen(index: ShardIndex, start: int, total: int, rank: int, buffer: int | None) -> list[list[tuple[str, int]]]:
    order = make_sampler(index, 3, start, total, seed=7, rank=rank, world=2, shard_buffer=buffer)
    return list(DataLoader(Keys(index), batch_sampler=order, num_workers=2, collate_fn=list))


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_two_processes_with_two_workers_see_each_image_once(place: str, server: SimpleNamespace, copy: Path) -> None:
    index = index_images(str(copy) if place == "here" else server.url)
    buffer = None if place == "here" else 1
    ranks = [keys_seen(index, 0, 8, rank, buffer) for rank in (0, 1)]
    for epoch in (0, 1):
        seen = [key for batches in ranks for batch in batches for key, of in batch if of == epoch]
        assert sorted(seen) == index.keys().to_pylist()
    assert keys_seen(index, 2, 8, 1, buffer) == ranks[1][2:]  # continued in the middle of an epoch
    assert [key for batch in ranks[0][:4] for key, _ in batch] != [key for batch in ranks[0][4:] for key, _ in batch]


def pixels_of(index: ImageIndex) -> int:
    return sum(int(decode(index.path(row)).sum()) for row in range(len(index)))


def test_shards_elsewhere_are_fetched_once_by_all_processes(
    photos: SimpleNamespace, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_shards(server.url)
    twice = [[(0, row)] for row in range(len(index)) for _ in (0, 1)]  # each of two workers, at the same time
    read = list(DataLoader(Keys(index), batch_sampler=twice, num_workers=2, collate_fn=list))
    assert [key for ((key, _),) in read[::2]] == index.keys().to_pylist()
    assert pixels_of(open_shards(f"{server.url}/manifest.json")) == pixels_of(photos.index)
    files = [f"shard-{n:06d}.tar" for n in range(len(list(photos.packed.glob("*.tar"))))]
    assert {name: server.asked[name] for name in files} == dict.fromkeys(files, 1)
    monkeypatch.setenv("BOXLESS_CACHE_GB", "0.0012")  # room for one
    pixels_of(index)
    kept = list(shard_files.cache_folder().glob("*.tar"))
    assert len(kept) == len(files)  # nothing was fetched, so nothing had to go
    for file in kept:
        file.unlink()
    assert pixels_of(index) == pixels_of(photos.index) and server.asked[files[0]] > 1
    assert len(list(shard_files.cache_folder().glob("*.tar"))) == 1
    with pytest.raises(UserError, match="set BOXLESS_CACHE_GB to that, or shard_buffer lower"):
        make_sampler(open_shards(server.url), 4, 0, 4, seed=0)


def test_a_broken_shard_elsewhere_is_named(server: SimpleNamespace, copy: Path) -> None:
    name = "shard-000001.tar"
    index = open_shards(server.url)
    row = next(row for row in range(len(index)) if shard_of(index, row) == name)
    content = (copy / name).read_bytes()
    for broken, message in (
        (content[:-1000], "cut short: .* of .* bytes"),
        (content[:-1] + b"x", "altered since it was packed: its SHA-256"),
        (None, "missing: there is no such file"),
    ):
        (copy / name).unlink()
        if broken:
            (copy / name).write_bytes(broken)
        with pytest.raises(UserError, match=f"{server.url}/{name}: {message}") as here:
            decode(index.path(row))
        order = [[(0, row)]]
        with pytest.raises(UserError) as from_worker:
            list(DataLoader(Keys(index), batch_sampler=order, num_workers=1, collate_fn=list))
        assert str(from_worker.value) == str(here.value) and "\n" not in str(here.value)
        (copy / name).touch()
    with pytest.raises(UserError, match=r"nowhere/manifest\.json: missing"):
        open_shards(f"{server.url}/nowhere")
    with pytest.raises(UserError, match=r"nosuch://x/manifest\.json: Protocol not known"):
        open_shards("nosuch://x")
