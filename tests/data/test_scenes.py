import json
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from boxless.data import scenes as digits
from boxless.data.annotations.read import read_labels
from boxless.data.scenes import make_scenes
from boxless.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "digits"
    make_scenes(out, unlabelled=3, train=40, val=6, seed=1)
    return out


def test_same_seed_same_bytes_and_counts_do_not_shift_scenes(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / "again", unlabelled=3, train=40, val=6, seed=1)
    assert contents(tmp_path / "again") == contents(scenes)
    make_scenes(tmp_path / "fewer", unlabelled=1, train=2, val=0, seed=1)
    ours = contents(scenes)
    fewer = {name: data for name, data in contents(tmp_path / "fewer").items() if name.endswith(".jpg")}
    assert len(fewer) == 3 and all(ours[name] == data for name, data in fewer.items())
    make_scenes(tmp_path / "other", unlabelled=1, train=2, val=0, seed=2)
    assert all(ours[name] != data for name, data in contents(tmp_path / "other").items() if name.endswith(".jpg"))


def test_boxes_are_tight_around_masks_that_do_not_overlap(scenes: Path) -> None:
    document = json.loads((scenes / "annotations" / "train.json").read_text())
    covered = {image["id"]: np.zeros((96, 96), int) for image in document["images"]}
    for annotation in document["annotations"]:
        mask = coco_mask.decode(coco_mask.segmToRle(annotation["segmentation"], 96, 96))
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == mask.sum() >= 8
        covered[annotation["image_id"]] += mask
    assert all(layer.max() <= 1 for layer in covered.values())


def test_reads_as_a_coco_data_set_with_ten_classes(scenes: Path) -> None:
    for role, count in (("train", 40), ("val", 6)):
        data = read_labels(scenes, role=role)
        assert (len(data), data.problems, data.has_masks) == (count, (), True)
        assert data.classes == tuple("0123456789")
        assert all(cv2.imread(str(image.path)).shape == (96, 96, 3) for image in data.images)
    labels = np.concatenate([image.labels for image in read_labels(scenes).images])
    assert set(labels) == set(range(10)) and 3 <= len(labels) / 40 <= 8
    assert len(list((scenes / "images" / "unlabelled").iterdir())) == 3


def test_handwriting_of_val_is_in_no_other_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[set[int]] = []
    draw = digits.draw_scene
    monkeypatch.setattr(digits, "draw_scene", lambda rng, pool, size: pools.append(set(pool)) or draw(rng, pool, size))
    make_scenes(tmp_path / "out", unlabelled=1, train=1, val=1)
    unlabelled, train, val = pools
    assert unlabelled == train and not train & val and len(train | val) == 1797


def test_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    digits._photographs.cache_clear()
    digits._stencils.cache_clear()
    make_scenes(tmp_path / "out", unlabelled=1, train=0, val=0)
    assert len(list((tmp_path / "out" / "images" / "unlabelled").iterdir())) == 1


def test_same_scenes_are_left_alone_and_others_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_scenes(out, unlabelled=1, train=1, val=1)
    before = (out / "settings.json").stat().st_mtime_ns
    make_scenes(out, unlabelled=1, train=1, val=1)
    assert (out / "settings.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="found others"):
        make_scenes(out, unlabelled=2, train=1, val=1)


def test_a_stopped_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "out", unlabelled=1, train=1, val=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [{"size": 16}, {"train": -1}])
def test_bad_settings_are_named(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected size >= 32 px and counts >= 0"):
        make_scenes(tmp_path / "out", **{"unlabelled": 1, "train": 1, "val": 1} | bad)
