import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxless
from boxless.data.annotations.read import read_labels
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, masks_to_rle
from boxless.plots.overlay import overlay

LOW = 0.05  # two steps of training give no sure detection


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_predictions_are_labels_with_scores(digits, runs, tmp_path, kind, capsys):
    out = tmp_path / "found"
    result = boxless.predict(getattr(runs, kind), str(digits.images), str(out), score=LOW)
    assert f"{result.objects} objects in 6 images" in capsys.readouterr().out
    document = json.loads((out / "predictions.json").read_text())
    assert result.objects == len(document["annotations"]) > 0 and document["skipped"] == []
    assert all(LOW < entry["score"] <= 1 for entry in document["annotations"])

    labels = read_labels(out / "predictions.json")
    assert labels.problems == () and labels.has_masks == (kind == "masks") and labels.classes == tuple("0123456789")
    assert [image.path for image in labels.images] == sorted(digits.images.iterdir())
    assert sum(len(image.boxes) for image in labels.images) == result.objects

    for image in labels.images:
        with Image.open(out / "images" / image.path.name) as drawn, Image.open(image.path) as source:
            assert drawn.size == source.size == (64, 64)
            difference = np.abs(np.asarray(drawn, float) - np.asarray(source, float)).max()
        assert difference > 60 if len(image.boxes) else difference < 40


def test_finds_what_evaluate_finds(digits, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("boxless.tasks.evaluate.EXAMPLES", 1)
    boxless.evaluate(runs.masks, digits.val, str(tmp_path / "e"), quiet=True)
    evaluated = json.loads((tmp_path / "e" / "detections.json").read_text())
    half = sorted(entry["score"] for entry in evaluated)[len(evaluated) // 2]
    boxless.predict(runs.masks, str(digits.images), str(tmp_path / "p"), score=half, quiet=True)
    predicted = json.loads((tmp_path / "p" / "predictions.json").read_text())["annotations"]
    surer = [entry for entry in evaluated if entry["score"] > half]
    assert len(predicted) == len(surer) > 0.3 * len(evaluated)
    for ours, theirs in zip(predicted, surer, strict=True):
        assert {key: ours[key] for key in theirs} == theirs


@pytest.fixture
def odd_images(digits, tmp_path):
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(digits.images / "000000.jpg", folder / "deep" / "a.jpg")
    shutil.copy(digits.images / "000000.jpg", folder / "deep" / "a.jpeg")
    Image.fromarray(np.full((1, 1), 200, np.uint8)).save(folder / "dot.png")
    Image.new("CMYK", (900, 3)).save(folder / "line.jpg")
    Image.fromarray(np.arange(12_000, dtype=np.uint16).reshape(150, 80)).save(folder / "wide.png")
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes((digits.images / "000001.jpg").read_bytes()[:900])
    return folder


def test_odd_and_broken_images_never_stop_it(runs, odd_images, tmp_path, capsys):
    result = boxless.predict(runs.masks, str(odd_images), str(tmp_path / "p"), score=0.0)
    assert result.images == 5
    assert result.skipped == {str(odd_images / "cut.jpg"): "truncated", str(odd_images / "empty.jpg"): "empty file"}
    assert "2 images could not be read" in (printed := capsys.readouterr().out) and "empty.jpg: empty file" in printed
    document = json.loads((tmp_path / "p" / "predictions.json").read_text())
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in document["images"]}
    assert sizes == {
        "a.jpg": (64, 64),
        "a.jpeg": (64, 64),
        "dot.png": (1, 1),
        "line.jpg": (900, 3),
        "wide.png": (80, 150),
    }
    assert [entry["reason"] for entry in document["skipped"]] == ["truncated", "empty file"]
    drawn = {str(file.relative_to(tmp_path / "p" / "images")) for file in (tmp_path / "p").rglob("*.jpg")}
    assert drawn == {"deep/a.jpg", "deep/a.jpeg.jpg", "dot.png.jpg", "line.jpg", "wide.png.jpg"}
    assert not list((tmp_path / "p").rglob("*.partial"))


def test_takes_single_files(digits, runs, tmp_path):
    files = [str(digits.images / name) for name in ("000003.jpg", "000001.jpg")]
    assert boxless.predict(runs.boxes, files[0], str(tmp_path / "one"), quiet=True).images == 1
    assert boxless.predict(runs.boxes, files, str(tmp_path / "two"), quiet=True).images == 2
    assert sorted(file.name for file in (tmp_path / "two" / "images").iterdir()) == ["000001.jpg", "000003.jpg"]
    with pytest.raises(UserError, match="not both"):
        boxless.predict(runs.boxes, [*files, str(digits.unlabelled)], str(tmp_path / "three"))
    with pytest.raises(UserError, match=r"no such file or folder: .*nothing\.jpg"):
        boxless.predict(runs.boxes, str(tmp_path / "nothing.jpg"), str(tmp_path / "three"))


def test_no_file_of_the_user_is_overwritten(digits, runs, tmp_path):
    folder = tmp_path / "photos" / "images"
    shutil.copytree(digits.images, folder)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="holds other files"):
        boxless.predict(runs.boxes, str(folder), str(folder.parent), quiet=True)
    with pytest.raises(UserError, match="lies inside"):
        boxless.predict(runs.boxes, str(folder), str(folder / "found"), quiet=True)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, before)))  # absolute paths
    boxless.predict(runs.boxes, str(listed), str(tmp_path / "p"), quiet=True)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    drawn = tmp_path / "p" / "images" / folder.relative_to("/")
    assert sorted(file.name for file in drawn.iterdir()) == sorted(file.name for file in before)
    ours = tmp_path / "p" / "images" / "x.jpg"  # where predict puts what it draws of an x.jpg
    shutil.copy(folder / "000000.jpg", ours)
    with pytest.raises(UserError, match="would overwrite"):
        boxless.predict(runs.boxes, str(ours), str(tmp_path / "p"), quiet=True)


def test_what_an_earlier_run_drew_goes_and_no_picture_takes_anothers_place(digits, runs, tmp_path):
    out, folder = tmp_path / "p", tmp_path / "a"
    (out / "class_maps").mkdir(parents=True)
    (out / "class_maps" / "old.png").touch()
    (out / "predictions.json.partial").touch()  # a run of FCN that was killed
    boxless.predict(runs.boxes, str(digits.images), str(out), quiet=True)
    (out / "images" / "000000.json").write_text("drawn by hand")
    (folder / "deep" / "a").mkdir(parents=True)
    sizes = {"1.png": 20, "1.png.jpg": 30, "deep/a/1.png": 40}
    for name, size in sizes.items():
        Image.new("RGB", (size, size)).save(folder / name)
    (folder / "deep" / "list.txt").write_text("../../a/1.png\n../../a/1.png.jpg\na/1.png\n")
    boxless.predict(runs.boxes, str(folder / "deep" / "list.txt"), str(out), quiet=True)
    drawn = {}
    for file in sorted(out.rglob("*.*g")):
        with Image.open(file) as picture:
            drawn[str(file.relative_to(out / "images"))] = picture.width
    assert drawn == {"a/1.png.jpg": 20, "a/1.png-2.jpg": 30, "a/1.png-3.jpg": 40}
    assert (out / "images" / "000000.json").is_file() and not (out / "class_maps").exists()


def test_anothers_predictions_and_pictures_are_kept(digits, runs, tmp_path):
    shutil.copytree(digits.images, tmp_path / "own" / "images")
    (tmp_path / "own" / "predictions.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"its predictions\.json is not of boxless predict"):
        boxless.predict(runs.boxes, str(digits.images), str(tmp_path / "own"), quiet=True)
    assert len(list((tmp_path / "own" / "images").iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "expected"), [({"score": 1.5}, "score: 1.5"), ({"run": "nothing"}, "no such folder")]
)
def test_wrong_arguments_are_named(digits, runs, tmp_path, arguments, expected):
    with pytest.raises(UserError, match=expected):
        boxless.predict(**{"run": runs.boxes, "data": str(digits.images), "out": str(tmp_path / "p")} | arguments)


@pytest.mark.parametrize("scale", [1, 8])
def test_the_overlay_colours_masks_and_edges_and_nothing_else(scale):
    image = np.full((100 * scale, 200 * scale, 3), 128, np.uint8)
    mask = np.zeros((1, 100 * scale, 200 * scale), bool)
    mask[0, 50 * scale : 60 * scale, 90 * scale : 110 * scale] = True
    box = np.array([[80, 40, 120, 70]], np.float32) * scale
    found = Detections(box, np.array([0.876], np.float32), np.array([0]), masks_to_rle(mask))
    drawn = np.asarray(overlay(image, found, ("cat",)))
    assert drawn.shape == image.shape
    blue = np.array([0x00, 0x72, 0xB2])  # the palette's first
    assert (drawn[45 * scale : 65 * scale, [int(box[0, 0]), int(box[0, 2]) - 1]] == blue).all()
    assert (drawn[52 * scale, 100 * scale] == (0.55 * 128 + 0.45 * blue).astype(np.uint8)).all()
    assert (drawn[45 * scale, 85 * scale] == 128).all()
    changed = np.argwhere((drawn != 128).any(2)) / scale
    assert changed.min(0)[0] > 20 and changed.max(0)[0] < 73  # the name is right above the box
    assert changed.min(0)[1] >= 77 and changed.max(0)[1] <= 125
