"""RetinaNet, FCOS and Keypoint R-CNN through the commands, on real images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

import boxless
from boxless.cli import main
from boxless.data.annotations.read import read_labels
from boxless.data.images import decode
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.weights import save_trunk
from boxless.tasks.detect import load_detector

TRUNK = {"backbone": "resnet18", "fpn_channels": 64, "box_head_width": 32}
SETTINGS = {
    "iterations": 2,
    "batch_size": 2,
    "min_size": "64",
    "max_size": 96,
    "workers": 0,
    "evaluate_every": 1000,
    "detector.score_threshold": 0.0,
    "detector.detections": 10,
    "detector.rpn_proposals": 30,
    "detector.roi_samples": 16,
    "detector.loss_normalizer": "moving_average",  # of RetinaNet: its state is the run's, and no export's
    "detector.box_beta": 0.5,
    "precision": "32-true",
    **{f"trunk.{key}": value for key, value in TRUNK.items()},
}
LOADED = {
    "retinanet": "100.0% of parameters; backbone ok, FPN ok (",
    "fcos": "100.0% of parameters; backbone ok, FPN ok (",
    "keypoint_rcnn": "100.0% of parameters; backbone ok, FPN ok, RoI head ok (",
}


@pytest.fixture(scope="module")
def labels(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four images of people, each with keypoints that are made up from its box."""
    source = shared_data / "coco256" / "annotations" / "instances_train.json"
    document = json.loads(source.read_text())
    person = next(category for category in document["categories"] if category["name"] == "person")
    person |= {"keypoints": ["top", "left_corner", "right_corner"], "skeleton": [[2, 3]]}
    with_people = {entry["image_id"] for entry in document["annotations"] if entry["category_id"] == person["id"]}
    images = [image for image in document["images"] if image["id"] in with_people][:4]
    kept = {image["id"] for image in images}
    folder = shared_data / "coco256" / "images" / "train"
    for image in images:
        image["file_name"] = str((folder / image["file_name"]).resolve())
    for entry in document["annotations"]:
        if entry["category_id"] == person["id"]:
            x, y, w, h = entry["bbox"]
            points = [x + w / 2, y, 2, x, y + h, 2, x + w, y + h, 1]
            entry |= {"keypoints": points, "num_keypoints": 3}
    document |= {
        "images": images,
        "annotations": [entry for entry in document["annotations"] if entry["image_id"] in kept],
    }
    path = tmp_path_factory.mktemp("people") / "labels.json"
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture(scope="module", params=list(LOADED))
def run(request: pytest.FixtureRequest, labels: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind, and its detector fine-tuned by the command from a trunk such as SoCo's."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    weights = folder / "soco.safetensors"
    save_trunk(weights, Trunk(TrunkConfig(**TRUNK)), ("backbone", "FPN", "RoI head"))  # type: ignore[arg-type]
    words = ["--data", labels, "--val", labels, "--weights", str(weights), "--out", str(folder / "run"), "--quiet"]
    words += [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
    assert main(["finetune", "--detector.kind", request.param, *words]) == 0
    return request.param, folder / "run"


def test_a_pretrained_trunk_is_taken_over_and_the_run_says_so(run: tuple[str, Path]) -> None:
    kind, path = run
    summary = json.loads((path / "summary.json").read_text())
    assert summary["detector"] == kind and summary["steps"] == 2 and LOADED[kind] in summary["weights"]
    assert ("no place here" in summary["weights"]) == (kind != "keypoint_rcnn")
    assert set(summary["scores"]) == ({"bbox", "keypoints"} if kind == "keypoint_rcnn" else {"bbox"})


def test_it_is_measured_used_and_read_back(run: tuple[str, Path], labels: str, tmp_path: Path) -> None:
    kind, path = run
    result = boxless.evaluate(str(path), labels, str(tmp_path / "e"), quiet=True)
    assert result.images == 4 and 0 <= result.scores["bbox"].ap <= 1
    assert ("keypoints: AP" in str(result)) == (kind == "keypoint_rcnn")
    images = [str(image.path) for image in read_labels(labels).images]
    predicted = boxless.predict(str(path), images, str(tmp_path / "p"), score=0.0, quiet=True)
    assert predicted.images == 4 and 4 <= predicted.objects <= 40
    assert len(list((tmp_path / "p" / "images").rglob("*.jpg"))) == 4
    again = read_labels(predicted.path)
    assert sum(len(image.boxes) for image in again.images) <= predicted.objects and len(again.classes) == 80
    assert again.skeleton == (read_labels(labels).skeleton if kind == "keypoint_rcnn" else type(again.skeleton)())
    assert again.has_keypoints == (kind == "keypoint_rcnn")


def test_it_finds_the_same_in_torchvision(
    run: tuple[str, Path], labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, path = run
    file = boxless.export(str(path), str(tmp_path / "detector.safetensors"), "torchvision-detector", quiet=True)
    text = file.with_name(f"{file.name}.README.txt").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(text[text.index("import math") :], names)
    model, (ours, classes, _) = names["model"].eval(), load_detector(path)
    expected_type = {"retinanet": "RetinaNet", "fcos": "FCOS", "keypoint_rcnn": "KeypointRCNN"}[kind]
    assert type(model) is getattr(torchvision.models.detection, expected_type)
    first = 1 if kind == "keypoint_rcnn" else 0
    assert f"{first} {classes[0]}, {first + 1} {classes[1]}" in text
    model.transform.min_size, model.transform.max_size = (64,), 64
    image = torch.from_numpy(decode(read_labels(labels).images[0].path)[:64, :64].copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        given, expected = model([image])[0], ours([image])[0]
    assert len(expected["boxes"]) > 0 and given.keys() == expected.keys()
    for name in expected:
        wanted = expected[name] - (1 - first) if name == "labels" else expected[name]
        torch.testing.assert_close(given[name], wanted, atol=1e-4, rtol=1e-4)


def test_it_is_a_source_of_weights(run: tuple[str, Path], labels: str, tmp_path: Path) -> None:
    kind, path = run
    changes = {**SETTINGS, "optim.lr": 0.0, "iterations": 1, "freeze": 5, "detector.kind": kind}
    again = boxless.finetune(labels, labels, str(tmp_path / "run"), weights=str(path), quiet=True, **changes)
    assert LOADED[kind].removesuffix(" (") in again.summary["weights"]
    before, after = load_file(path / "weights.safetensors"), load_file(again.weights)
    body = [key for key in before if key.startswith("backbone.body.")]
    assert len(body) > 100 and all(torch.equal(before[key], after[key]) for key in body)  # frozen, statistics too


def test_keypoints_must_be_there_and_the_same(run: tuple[str, Path], labels: str, tmp_path: Path) -> None:
    kind, path = run
    document = json.loads(Path(labels).read_text())
    person = next(category for category in document["categories"] if "keypoints" in category)
    person["keypoints"] = ["left_corner", "top", "right_corner"]
    other, bare = tmp_path / "other.json", tmp_path / "bare.json"
    other.write_text(json.dumps(document))
    del person["keypoints"]
    bare.write_text(json.dumps(document))
    settings: dict[str, Any] = {**SETTINGS, "detector.kind": kind, "quiet": True, "out": str(tmp_path / "run")}
    if kind == "keypoint_rcnn":
        with pytest.raises(UserError, match="needs keypoints and these labels have none"):
            boxless.finetune(str(bare), labels, **settings)
        with pytest.raises(UserError, match="their names must agree"):
            boxless.finetune(labels, str(other), **settings)
        with pytest.raises(UserError, match="their names must agree"):
            boxless.evaluate(str(path), str(other), quiet=True)
    result = boxless.evaluate(str(path), str(bare), str(tmp_path / "e"), quiet=True)
    assert set(result.scores) == {"bbox"}
