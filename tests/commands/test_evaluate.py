import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from torch import nn

import boxless
from boxless.data.annotations.read import LabelledImage, read_labels
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, average_precision
from boxless.figures import scores as picture_scores
from boxless.interop.files import read_tensors
from boxless.plots import detections
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe
from boxless.report import build as report_pages
from boxless.tasks import evaluate as evaluating

SCALE = 1.5  # of the images that the knowing detector is shown


@pytest.fixture(autouse=True)
def one_example(monkeypatch):
    """The figure takes longer than all the rest."""
    monkeypatch.setattr("boxless.tasks.evaluate.EXAMPLES", 1)


class Knowing(nn.Module):
    """Answers with the labels themselves, image after image, but takes every 3 for an 8."""

    def __init__(self, document: dict, classes: tuple[str, ...]) -> None:
        super().__init__()
        names = {category["id"]: category["name"] for category in document["categories"]}
        self.answers = iter([self.answer(document, image["id"], names, classes) for image in document["images"]])

    def answer(self, document: dict, image: int, names: dict, classes: tuple[str, ...]) -> dict[str, torch.Tensor]:
        objects = [entry for entry in document["annotations"] if entry["image_id"] == image]
        xywh = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32)
        labels = [classes.index(names[entry["category_id"]].replace("3", "8")) + 1 for entry in objects]
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * SCALE
        return {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.linspace(1, 0.6, len(objects))}

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert all(image.shape == (3, 64 * SCALE, 64 * SCALE) for image in images)
        return [next(self.answers) for _ in images]


def test_a_detector_that_knows_the_labels(digits, runs, tmp_path, monkeypatch):
    document = json.loads(Path(digits.val).read_text())
    classes = tuple("9876543210")  # not in the order of the file's categories
    recipe = load(Path(runs.boxes) / "recipe.yaml", FinetuneRecipe)
    larger = replace(recipe, min_size=(96,))
    monkeypatch.setattr(evaluating, "load_detector", lambda run: (Knowing(document, classes), classes, larger))
    result = boxless.evaluate(runs.boxes, digits.val, str(tmp_path / "e"), quiet=True)
    per_class = result.scores["bbox"].per_class
    assert per_class.pop("3") == 0 and per_class.pop("8") < 1
    assert all(value == pytest.approx(1) for value in per_class.values())
    written = json.loads((tmp_path / "e" / "detections.json").read_text())
    for found, truth in zip(written, document["annotations"], strict=True):
        assert found["image_id"] == truth["image_id"]
        assert found["bbox"] == pytest.approx(truth["bbox"], abs=1e-3)
        assert found["category_id"] == (9 if truth["category_id"] == 4 else truth["category_id"])


class KnowingMasks(nn.Module):
    """Answers with the boxes and masks of the labels, image after image, whatever it is shown."""

    def __init__(self, images: tuple[LabelledImage, ...]) -> None:
        super().__init__()
        self.answers = iter([self.answer(image) for image in images])

    def answer(self, image: LabelledImage) -> dict[str, torch.Tensor]:
        masks = np.stack([coco_mask.decode(mask) for mask in image.masks])
        return {
            "boxes": torch.from_numpy(image.boxes),
            "labels": torch.from_numpy(image.labels) + 1,
            "scores": torch.ones(len(image.labels)),
            "masks": torch.from_numpy(masks)[:, None].float(),
        }

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert all(image.shape == (3, 64, 64) for image in images)
        return [next(self.answers) for _ in images]


@pytest.mark.parametrize("size", [(65, 64), (63, 65), None])
def test_masks_of_images_a_pixel_off_and_nothing_in_unreadable_ones(
    runs, tmp_path, own_labels, monkeypatch, size: tuple[int, int] | None
):
    labels = own_labels(lambda document: None)
    data = read_labels(str(labels))
    for image in data.images if size else data.images[2:3]:
        if size:
            Image.open(image.path).crop((0, 0, *size)).save(image.path)
        else:
            image.path.write_bytes(b"no image")
    recipe = load(Path(runs.masks) / "recipe.yaml", FinetuneRecipe)
    monkeypatch.setattr(evaluating, "load_detector", lambda run: (KnowingMasks(data.images), data.classes, recipe))
    result = boxless.evaluate(runs.masks, str(labels), str(tmp_path / "e"), quiet=True)
    aps = [result.scores[kind].ap for kind in ("bbox", "segm")]
    written = json.loads((tmp_path / "e" / "detections.json").read_text())
    if size:
        assert aps == pytest.approx([1, 1]) and not result.skipped
        assert all(entry["segmentation"]["size"] == [64, 64] for entry in written)
    else:
        assert max(aps) < 0.99 and list(result.skipped) == [str(data.images[2].path)]
        seen = {image.image_id for image in data.images if len(image.boxes)} - {data.images[2].image_id}
        assert {entry["image_id"] for entry in written} == seen
    assert (tmp_path / "e" / "examples.png").is_file()


def test_writes_what_the_trained_detector_finds(digits, runs, capsys):
    result = boxless.evaluate(runs.masks, digits.val)
    printed = capsys.readouterr().out
    assert "boxes: AP" in printed and "masks: AP" in printed and "AP by class" in printed
    out = Path(runs.masks) / "evaluation-val"
    assert result.path == out and result.images == 6 and result.unlabelled == () and result.skipped == {}
    assert (out / "examples.png").stat().st_size > 10_000 and (out / "examples.svg").stat().st_size > 10_000
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary["scores"]["segm"].keys() == summary["scores"]["bbox"].keys() >= {"AP", "AP50", "APs"}
    assert summary["scores"]["bbox"]["APl"] is None  # no object is larger than the images
    assert list(summary["per_class"]["bbox"]) == list("0123456789")

    recipe = load(Path(runs.masks) / "recipe.yaml", FinetuneRecipe)
    detector = recipe.detector.build(Trunk(recipe.trunk), 10).eval()
    detector.load_state_dict(read_tensors(Path(runs.masks) / "weights.safetensors"))
    with Image.open(digits.images / "000000.jpg") as picture:
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    with torch.no_grad():
        expected = detector([image])[0]
    found = [entry for entry in json.loads((out / "detections.json").read_text()) if entry["image_id"] == 1]
    assert len(found) == len(expected["boxes"]) > 0
    xywh = np.array([entry["bbox"] for entry in found])
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    np.testing.assert_allclose(xyxy, expected["boxes"], atol=1e-2)
    np.testing.assert_allclose([entry["score"] for entry in found], expected["scores"], atol=1e-4)
    assert [entry["category_id"] for entry in found] == expected["labels"].tolist()
    assert all(entry["segmentation"]["size"] == [64, 64] for entry in found)


@pytest.fixture
def own_labels(digits, tmp_path):
    """Write val's labels and images after `change(document)`; returns the label file."""

    def write(change):
        document = json.loads(Path(digits.val).read_text())
        change(document)
        shutil.copytree(digits.images, tmp_path / "own" / "images")
        (tmp_path / "own" / "labels.json").write_text(json.dumps(document))
        return tmp_path / "own" / "labels.json"

    return write


def test_unreadable_images_and_missing_classes_are_told(runs, tmp_path, own_labels, capsys):
    def without_zeros(document):
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] != 1]

    labels = own_labels(without_zeros)
    (labels.parent / "images" / "000002.jpg").write_bytes(b"no image")
    result = boxless.evaluate(runs.boxes, str(labels), str(tmp_path / "e"))
    assert result.unlabelled == ("0",) and result.images == 6
    assert list(result.skipped) == [str(labels.parent / "images" / "000002.jpg")]
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["per_class"]["bbox"]["0"] is None
    printed = capsys.readouterr().out
    assert "1 images could not be read" in printed and "without labelled objects, in no mean: 0" in printed


def test_of_lvis_only_what_its_labels_speak_of_is_called_wrong(tmp_path, own_labels, monkeypatch):
    def federated(document):
        for image in document["images"]:
            objects = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
            image["neg_category_ids"] = [min(set(range(1, 11)) - {entry["category_id"] for entry in objects})]
        for category in document["categories"]:
            category["frequency"] = "f"

    file = str(own_labels(federated))
    labels = read_labels(file)
    found = []
    for row, image in enumerate(labels.images):
        unknown = max(set(range(10)) - {*image.labels.tolist(), *image.negative})
        others = [unknown, *image.negative[: row == 0]]  # once in all a class that is known not to be there
        boxes = np.concatenate([image.boxes, np.float32([[0, 0, 5, 5]] * len(others))])
        scores = np.float32([*[0.9] * len(image.boxes), *[0.95, 0.6][: len(others)]])
        found.append(Detections(boxes, scores, np.array([*image.labels, *others])))
    recipe = load("faster-rcnn-fpn", FinetuneRecipe)
    for module in (evaluating, picture_scores):
        monkeypatch.setattr(module, "load_detector", lambda run: (None, labels.classes, recipe))
        monkeypatch.setattr(module, "detect_labelled", lambda *_: (found, {}))
    monkeypatch.setattr(evaluating, "skeleton_of", lambda run: labels.skeleton)
    monkeypatch.setattr(report_pages, "write_report", lambda *_: None)  # there is no run to show
    pairs, drawn = detections.detection_pairs, []
    monkeypatch.setattr(detections, "detection_pairs", lambda *given: drawn.append(given) or pairs(*given))
    boxless.evaluate("run", file, str(tmp_path / "e"), quiet=True)
    objects = sum(len(image.boxes) for image in labels.images)
    counts = json.loads((tmp_path / "e" / "gallery.json").read_text())["counts"]
    assert counts == {"correct": objects, "extra": 1, "wrong class": 0, "missing": 0}
    ((_, truths, shown, *_),) = drawn
    for truth, each in zip(truths, shown, strict=True):
        assert each.labels.tolist() == [*truth.labels, *truth.negative]  # the first image is the one example

    matched = picture_scores.MatchedDetections("run", file, quiet=True)
    said = [picture.caption for picture in picture_scores.draw_detections(matched)]
    assert all(f"{objects} correct" in each and " 1 extra" in each for each in said)
    said = picture_scores.draw_confusion(matched).caption
    assert f"{objects} of their class, 0 of another one, 0 missed, 1 extra" in said
    assert average_precision(labels, found, federated=True).ap50 == 1 > average_precision(labels, found).ap50
    assert "AP50 100.0, AP75 100.0" in picture_scores.draw_precision_recall(matched).caption


def test_labels_of_other_classes_are_refused(runs, own_labels):
    def renamed(document):
        for category in document["categories"]:
            category["name"] = f"digit {category['name']}"

    with pytest.raises(UserError, match=r"\(0, 1, 2.*its own classes are digit 0, digit 1"):
        boxless.evaluate(runs.boxes, str(own_labels(renamed)), quiet=True)


def test_results_of_other_labels_are_kept(digits, runs, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"run": "runs/a", "data": "b.json"}')
    with pytest.raises(UserError, match=r"holds the evaluation of runs/a on b\.json; name another folder"):
        boxless.evaluate(runs.boxes, digits.val, str(tmp_path), quiet=True)
    (tmp_path / "evaluation.json").write_text(json.dumps({"run": runs.boxes, "data": digits.val}))
    boxless.evaluate(runs.boxes, digits.val, str(tmp_path), quiet=True)
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 6


@pytest.mark.parametrize(
    ("kept", "expected"),
    [("own/detections.json", "holds other files"), ("copy/gallery.json", "is the folder of a run")],
)
def test_nothing_else_is_overwritten(digits, runs, tmp_path, kept, expected):
    run = shutil.copytree(runs.boxes, tmp_path / "copy")
    (tmp_path / "own").mkdir()
    (run / "evaluation.json").write_text(json.dumps({"run": str(run), "data": digits.val}))  # an older version's
    (tmp_path / kept).write_text("mine")
    with pytest.raises(UserError, match=expected):
        boxless.evaluate(str(run), digits.val, str((tmp_path / kept).parent), quiet=True)
    assert (tmp_path / kept).read_text() == "mine"


def test_an_evaluation_that_was_killed_is_made_again(digits, runs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("boxless.tasks.evaluate._draw_detections", killed)
        boxless.evaluate(runs.boxes, digits.val, str(tmp_path / "e"), quiet=True)
    boxless.evaluate(runs.boxes, digits.val, str(tmp_path / "e"), quiet=True)
    assert (tmp_path / "e" / "evaluation.json").is_file() and not list((tmp_path / "e").glob("*.partial"))


def test_what_is_no_detector_is_refused(digits, runs, tmp_path):
    with pytest.raises(UserError, match=r"pretraining run.*boxless finetune --weights"):
        boxless.evaluate(runs.pretrained, digits.val)
    with pytest.raises(UserError, match=r"is not a run \(no recipe"):
        boxless.evaluate(str(tmp_path), digits.val)
    with pytest.raises(UserError, match="no such folder"):
        boxless.evaluate(str(tmp_path / "nothing"), digits.val)
    copy = shutil.copytree(runs.boxes, tmp_path / "copy")
    (copy / "labels.json").write_text('{"classes": ["cat"]}')
    with pytest.raises(UserError, match=r"not the weights of the recipe.*box_predictor"):
        boxless.evaluate(str(copy), digits.val)
    (copy / "weights.safetensors").unlink()
    (copy / "labels.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        boxless.evaluate(str(copy), digits.val)
