import subprocess
import sys

import pytest

from boxless.commands.propose import propose
from boxless.errors import UserError


@pytest.fixture
def images(shared_data, tmp_path):
    (tmp_path / "images").mkdir()
    for file in sorted((shared_data / "coco256" / "images" / "val").iterdir())[:4]:
        (tmp_path / "images" / file.name).symlink_to(file)
    (tmp_path / "images" / "broken.jpg").touch()
    return tmp_path / "images"


def test_says_what_it_made(images, tmp_path, capsys):
    result = propose(str(images), str(tmp_path / "p.parquet"), max_side=96, workers=1)
    assert result.images == result.computed == 5
    assert result.boxes_per_image >= 5 and result.recall is None
    assert result.skipped == [("broken.jpg", "empty file")]
    printed = capsys.readouterr().out
    assert "5 images" in printed and "s per image" in printed and "broken.jpg: empty file" in printed
    assert propose(str(images), str(tmp_path / "p.parquet"), max_side=96, quiet=True).computed == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["grid", "random"])
def test_measures_recall_against_labels(shared_data, tmp_path, capsys, method):
    labels = shared_data / "coco256" / "annotations" / "instances_val.json"
    data = [str(shared_data / "coco256" / "images" / part) for part in ("train", "val")]
    result = propose(data, str(tmp_path / "p.parquet"), method, recall=str(labels), workers=1)
    assert result.images == 256 and result.recall.images == 128
    assert result.recall.shares["small"] < 0.01 < 0.3 < result.recall.shares["large"]
    assert "recall at IoU 0.5" in capsys.readouterr().out


def test_takes_boxes_from_a_coco_file(shared_data, images, tmp_path):
    labels = str(shared_data / "coco256" / "annotations" / "instances_val.json")
    result = propose(str(images), str(tmp_path / "p.parquet"), boxes_from=labels, recall=labels, quiet=True)
    assert result.recall.shares["all"] == 1 and result.missing == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"preset": "slow"},
        {"workers": 0},
        {"out": "p.csv"},
        {"max_side": -3},
        {"preset": "fast", "method": "grid"},
        {"max_side": 0, "method": "random"},
        {"method": "selective_search", "boxes_from": "boxes.json"},
        {"preset": "fast", "boxes_from": "boxes.json"},
        {"max_side": 96, "boxes_from": "boxes.json"},
        {"workers": 1, "boxes_from": "boxes.json"},
        {"engine": "local", "boxes_from": "boxes.json"},
        {"ray_address": "head:6379", "boxes_from": "boxes.json"},
    ],
)
def test_wrong_arguments_are_named(images, tmp_path, wrong):
    arguments = {"out": str(tmp_path / "p.parquet")} | wrong
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}"):
        propose(str(images), **arguments)
    assert not (tmp_path / "p.parquet").exists()


def test_importing_the_command_loads_nothing_heavy():
    code = "import sys, boxless.commands.propose; print({'torch', 'numpy', 'cv2', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
