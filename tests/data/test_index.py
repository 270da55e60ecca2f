import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import boxless.data.open as index_module
from boxless.data.open import index_images
from boxless.errors import UserError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def age(folder: Path) -> None:
    """Make every folder look long unchanged, so that its index may be cached."""
    for path, _, _ in os.walk(folder, topdown=False):
        os.utime(path, (1_000_000, 1_000_000))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_folder_is_searched_to_any_depth(tmp_path, cache):
    root = fill(
        tmp_path / "a", "z.jpg", "b/c/d.PNG", "b.jpg", "b-c/é x.tif", "b/notes.txt", ".hidden.jpg", ".git/x.jpg"
    )
    (root / "folder.jpg").mkdir()
    (root / "loop").symlink_to(root)
    (root / "other").symlink_to(fill(tmp_path / "elsewhere", "o.webp"))
    (root / "dangling.jpg").symlink_to(root / "nothing")
    index = index_images(root, cache)
    assert index.keys().to_pylist() == ["b-c/é x.tif", "b.jpg", "b/c/d.PNG", "other/o.webp", "z.jpg"]
    assert [index.key(i) for i in range(len(index))] == index.keys().to_pylist()
    assert all(Path(index.path(i)).is_file() for i in range(len(index)))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("JPEGImages", ["SegmentationClass", "SegmentationClassAug", "SegmentationObject"]),
        ("leftImg8bit", ["gtFine", "gtCoarse"]),
    ],
)
def test_label_pictures_beside_a_layouts_images_are_none(tmp_path, cache, images, labels):
    root = fill(tmp_path / "sets", *(f"one/{folder}/train/a.png" for folder in [images, "more", *labels]))
    assert index_images(root, cache).keys().to_pylist() == sorted([f"one/{images}/train/a.png", "one/more/train/a.png"])
    assert len(index_images(root / "one" / labels[0], cache)) == 1
    (root / "one" / images).rename(tmp_path / "gone")
    assert len(index_images(root, cache)) == 1 + len(labels)  # ordinary folders that are named so


def test_an_index_cached_by_another_version_is_made_anew(tmp_path, cache, monkeypatch):
    root = fill(tmp_path / "a", "JPEGImages/1.jpg", "SegmentationClass/1.png")
    age(root)
    with monkeypatch.context() as before:  # as boxless was when it entered these folders
        before.setattr(index_module, "_CACHE_VERSION", 1)
        before.setattr(index_module, "_LABEL_PICTURES", {})
        assert len(index_images(root, cache)) == 2
    assert len(index_images(root, cache)) == 1


def test_several_places_get_prefixes_that_keep_keys_unique(tmp_path, cache):
    for name in ("x/images", "y/images"):
        fill(tmp_path / name, "1.jpg", "2.jpg")
    listed = fill(tmp_path / "z", "1.jpg") / "list.txt"
    listed.write_text(f"1.jpg\n{tmp_path}/x/images/1.jpg\n")
    index = index_images([tmp_path / "x/images", str(tmp_path / "y/images"), listed], cache)
    keys = index.keys().to_pylist()
    assert keys[:4] == ["x/images/1.jpg", "x/images/2.jpg", "y/images/1.jpg", "y/images/2.jpg"]
    assert len(set(keys)) == 6 and all(Path(index.path(i)).is_file() for i in range(6))
    with pytest.raises(UserError, match="lies inside"):
        index_images([tmp_path / "x", tmp_path / "x/images"], cache)


def test_a_list_counts_from_its_own_folder(tmp_path, cache):
    fill(tmp_path, "in/1.jpg", "in/2.jpg", "out/3.jpg")
    listed = tmp_path / "in" / "list.csv"
    listed.write_text("﻿# images\n2.jpg\r\n\n./1.jpg\n1.jpg\n../out/3.jpg\nmissing, later.jpg\n", encoding="utf-8")
    index = index_images(listed, cache)
    assert index.keys().to_pylist() == ["../out/3.jpg", "1.jpg", "2.jpg", "missing, later.jpg"]
    assert [Path(index.path(i)).exists() for i in range(4)] == [True, True, True, False]


def test_labelled_data_gives_its_images(shared_data, cache):
    index = index_images(f"{shared_data}/neu-det:train", cache)
    lines = (shared_data / "neu-det/ImageSets/Main/train.txt").read_text().split()
    assert sorted(f"{line}.jpg" for line in lines) == index.keys().to_pylist()
    val = index_images(shared_data / "coco256/annotations/instances_val.json", cache)
    assert len(val) == 128 and Path(val.path(0)).is_file()
    assert len(index_images([f"{shared_data}/neu-det:train", f"{shared_data}/neu-det:val"], cache)) == 1770


def test_fingerprint_depends_on_the_keys_alone(tmp_path, cache):
    a = index_images(fill(tmp_path / "a", "1.jpg", "2.jpg"), cache)
    b = index_images(fill(tmp_path / "b", "2.jpg", "1.jpg"), cache)
    assert a.fingerprint == b.fingerprint and len(a.fingerprint) == 16
    assert a.subset([1, 0]).fingerprint != a.fingerprint
    assert a.subset(np.array([1])).path(0) == a.path(1) and len(a.subset([])) == 0


def test_content_tells_images_of_equal_names_apart(tmp_path, cache):
    def images(folder, last):
        root = fill(tmp_path / folder, *(f"{n:03d}.jpg" for n in range(40)))
        (root / "039.jpg").write_bytes(last)
        return index_images(root, cache)

    one = images("cam1", b"a morning")
    assert one.content == images("copied", b"a morning").content != images("cam2", b"a evening").content
    assert one.content not in (one.subset(range(39)).content, one.fingerprint)
    (tmp_path / "cam1" / "039.jpg").unlink()
    assert len(index_images(tmp_path / "cam1", cache).subset([0]).content) == len(one.content) == 16


def test_many_links_are_cached_until_a_folder_changes(tmp_path, cache, monkeypatch):
    root = tmp_path / "many"
    fill(tmp_path, "one.jpg")
    for n in range(20_000):
        if n % 200 == 0:
            (root / f"{n // 200:03d}").mkdir(parents=True)
        os.link(tmp_path / "one.jpg", root / f"{n // 200:03d}" / f"{n:06d}.jpg")
    age(root)
    first = index_images(root, cache)
    assert len(first) == 20_000 and first.keys().nbytes / len(first) < 200
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "_scan", lambda root: pytest.fail("scanned again"))
        patched.setattr(os, "scandir", lambda path: pytest.fail("listed a folder"))
        allocated = pa.total_allocated_bytes()
        second = index_images(root, cache)
        assert pa.total_allocated_bytes() == allocated  # mapped, not copied
        assert second.keys().equals(first.keys()) and second.fingerprint == first.fingerprint
        assert second.path(12_345) == first.path(12_345)
    fill(root, "050/new.jpg")
    (root / "007" / "001400.jpg").unlink()
    third = index_images(root, cache).keys().to_pylist()
    assert set(third) ^ set(first.keys().to_pylist()) == {"050/new.jpg", "007/001400.jpg"}


def test_a_change_within_the_clock_tick_is_not_lost(tmp_path, cache):
    root = fill(tmp_path / "a", "1.jpg")
    assert len(index_images(root, cache)) == 1
    now = time.time_ns()
    os.utime(root, ns=(now, now))
    index_images(root, cache)
    fill(root, "2.jpg")
    os.utime(root, ns=(now, now))  # the same stamp, as on a file system that counts in seconds
    assert len(index_images(root, cache)) == 2


@pytest.mark.parametrize("damage", [b"", b"not an Arrow file"])
def test_a_broken_or_unwritable_cache_only_costs_time(tmp_path, cache, damage):
    root = fill(tmp_path / "a", "1.jpg")
    age(root)
    index_images(root, cache)
    (stored,) = cache.iterdir()
    stored.write_bytes(damage)
    assert len(index_images(root, cache)) == 1
    assert len(index_images(root, tmp_path / "a" / "1.jpg" / "no folder")) == 1


def test_the_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    age(fill(tmp_path / "a", "1.jpg"))
    index_images(tmp_path / "a")
    assert len(list((tmp_path / "home/boxless/index").iterdir())) == 1


def test_mistakes_are_told_in_one_line(tmp_path, cache):
    fill(tmp_path, "empty/sub/notes.md", "none.txt", "wrong.txt", "x.jpg", "notes.md")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "wrong.txt").write_text("images/1.jpg\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9.jpg\n")
    Image.new("RGB", (1, 1)).save(tmp_path / "picture.jpg")
    mistakes = {
        "absent": "no such file or folder: .*absent",
        "absent:train": "no such file or folder: .*absent",
        "empty": r"no images in .*empty or its subfolders: looked for .jpg",
        "none.txt": "lists no images",
        "wrong.txt": "none of its first files exist, e.g. .*images/1.jpg",
        "latin.txt": "not a UTF-8 text file",
        "notes.md": "no labels found",
    }
    for name, message in mistakes.items():
        with pytest.raises(UserError, match=message) as caught:
            index_images(tmp_path / name, cache)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no images given"):
        index_images([], cache)


def test_a_name_that_is_not_utf8_is_named(tmp_path, cache):
    try:
        (tmp_path / os.fsdecode(b"\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(UserError, match=r"rename .*\.jpg: its name is not UTF-8"):
        index_images(tmp_path, cache)


@pytest.mark.parametrize("layout", ["images/{}/{}.jpg annotations/{}/{}.png", "images{}/{}.png masks{}/{}.png"])
def test_label_maps_and_thumbnails_are_no_images(layout, tmp_path, capsys):
    photo = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    classes = (np.indices((30, 40)).sum(0) // 20).astype(np.uint8)
    images, maps = layout.split()
    for split in ("train", "val"):
        for number in range(3):
            for name, pixels in ((images, photo), (maps, classes)):
                path = tmp_path / "set" / name.format(split, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            thumbnail = tmp_path / "set" / "@eaDir" / f"{number}.jpg" / "SYNOPHOTO_THUMB_M.jpg"
            thumbnail.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(thumbnail)
    index = index_images(tmp_path / "set", tmp_path / "cache")
    assert len(index) == 6 and all(key.startswith("images") for key in index.keys().to_pylist())
    assert capsys.readouterr().err.count("3 label maps are left out") == 2


def test_two_cameras_are_both_images(tmp_path):
    for camera in ("front", "grey"):
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (30, 40), np.uint8)
            (tmp_path / camera).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / camera / f"{number}.png")
    assert len(index_images(tmp_path, tmp_path / "cache")) == 6
