"""FCN through the commands, on real images in the forms of COCO, Pascal VOC and Cityscapes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import boxless
from boxless.cli import main
from boxless.data.annotations.class_maps import CITYSCAPES_CLASSES, VOC_CLASSES, class_map, read_segmentation
from boxless.data.images import decode
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.weights import save_trunk
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import find_images, segment_images

TRUNK = {"backbone": "resnet18", "fpn_channels": 32, "box_head_width": 32}
SETTINGS = {
    "iterations": 4,
    "batch_size": 2,
    "min_size": "64",
    "max_size": 96,
    "crop.size": 64,
    "workers": 0,
    "evaluate_every": 2,
    "precision": "32-true",
    "detector.kind": "fcn",
    "optim.schedule": "polynomial",
    **{f"trunk.{key}": value for key, value in TRUNK.items()},
}
SIDE = 128  # px, the longest, of the images that are written
ALIKE = {"airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable", "tv": "tvmonitor"}


@pytest.fixture(scope="module")
def coco(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four real images with people and cars, their longest side reduced, and their masks."""
    document = json.loads((shared_data / "coco256" / "annotations" / "instances_train.json").read_text())
    wanted = {entry["id"] for entry in document["categories"] if entry["name"] in ("person", "car")}
    drawn = {e["image_id"] for e in document["annotations"] if e["category_id"] in wanted and e.get("segmentation")}
    images = [image for image in document["images"] if image["id"] in drawn][:4]
    folder = tmp_path_factory.mktemp("coco")
    scales = {}
    for image in images:
        picture = Image.open(shared_data / "coco256" / "images" / "train" / image["file_name"]).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        scales[image["id"]] = (picture.width / image["width"], picture.height / image["height"])
        picture.save(folder / f"{image['id']}.jpg")
        image |= {"file_name": f"{image['id']}.jpg", "width": picture.width, "height": picture.height}
    entries = [entry for entry in document["annotations"] if entry["image_id"] in scales]
    for entry in entries:
        x, y = scales[entry["image_id"]]
        entry["bbox"] = (np.array(entry["bbox"]) * [x, y, x, y]).tolist()
        polygons = entry.get("segmentation") or ()
        entry["segmentation"] = [(np.array(p).reshape(-1, 2) * [x, y]).ravel().tolist() for p in polygons] or None
    document |= {"images": images, "annotations": entries}
    (folder / "labels.json").write_text(json.dumps(document))
    return str(folder / "labels.json")


@pytest.fixture(scope="module")
def voc(coco: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images as VOC has them: palette PNG, void where VOC has no such class."""
    root = tmp_path_factory.mktemp("voc") / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    data = read_segmentation(coco)
    numbers = np.full(256, 255, np.uint8)
    for k, name in enumerate(data.classes):
        name = ALIKE.get(name, name)
        numbers[k] = VOC_CLASSES.index(name) if name in VOC_CLASSES else 255
    for image in data.images:
        Image.fromarray(decode(image.path)).save(root / "JPEGImages" / f"2012_{image.image_id}.jpg")
        values = Image.fromarray(numbers[class_map(image, len(data.classes))])
        values.putpalette(bytes(range(256)) * 3)
        values.save(root / "SegmentationClass" / f"2012_{image.image_id}.png")
    names = "".join(f"2012_{image.image_id}\n" for image in data.images)
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    return str(root)


@pytest.fixture(scope="module")
def cityscapes(coco: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images as Cityscapes has them: people and vehicles on a road, other objects "static" (id 4)."""
    root = tmp_path_factory.mktemp("cityscapes")
    data = read_segmentation(coco)
    numbers = np.full(256, 4, np.uint8)
    numbers[0] = CITYSCAPES_CLASSES["road"]
    for k, name in enumerate(data.classes):
        numbers[k] = CITYSCAPES_CLASSES.get(name, numbers[k])
    for split in ("train", "val"):
        folders = [root / part / split / "ulm" for part in ("leftImg8bit", "gtFine")]
        for folder in folders:
            folder.mkdir(parents=True)
        for k, image in enumerate(data.images):
            name = f"ulm_{k:06d}_000019"
            Image.fromarray(decode(image.path)).save(folders[0] / f"{name}_leftImg8bit.png")
            values = Image.fromarray(numbers[class_map(image, len(data.classes))])
            values.save(folders[1] / f"{name}_gtFine_labelIds.png")
    return str(root)


@pytest.fixture(scope="module", params=["coco", "voc", "cityscapes"])
def made(
    request: pytest.FixtureRequest, coco: str, voc: str, cityscapes: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """A layout, its data, and FCN fine-tuned on it by the command from a trunk such as SoCo's."""
    data = {"coco": coco, "voc": voc, "cityscapes": cityscapes}[request.param]
    folder = tmp_path_factory.mktemp(f"run-{request.param}")
    torch.manual_seed(0)
    weights = folder / "soco.safetensors"
    save_trunk(weights, Trunk(TrunkConfig(**TRUNK)), ("backbone", "FPN", "RoI head"))  # type: ignore[arg-type]
    words = ["--data", data, "--val", data, "--weights", str(weights), "--out", str(folder / "run"), "--quiet"]
    settings = dict(SETTINGS)
    if request.param == "cityscapes":
        settings |= {"detector.fcn.align_corners": "true", "detector.fcn.window": "[65,44]", "crop.size": 65}
    if request.param == "voc":
        settings |= {"detector.fcn.head": "16s", "crop.max_share": 1.0, "crop.distort": "false", "min_size": "[]"}
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert main(["finetune", *words]) == 0
    return request.param, data, folder / "run"


def test_a_run_says_what_it_loaded_and_its_miou(made: tuple[str, str, Path]) -> None:
    layout, _, path = made
    summary = json.loads((path / "summary.json").read_text())
    assert summary["detector"] == "fcn" and summary["steps"] == 4 and summary["labelled_images"] == 4
    assert "100.0% of parameters; backbone ok (" in summary["weights"] and "no place here" in summary["weights"]
    assert set(summary["scores"]) == {"segments"} and 0 < summary["scores"]["segments"]["mIoU"] < 1
    assert 0 < summary["scores"]["segments"]["pixel accuracy"] <= 1
    shares = summary["per_class"]["segments"]
    assert len(shares) == {"coco": 81, "voc": 21, "cityscapes": 19}[layout]
    known = [share for share in shares.values() if share is not None and not math.isnan(share)]
    assert summary["scores"]["segments"]["mIoU"] == pytest.approx(np.mean(known))
    metrics = (path / "metrics.csv").read_text()
    assert "loss_classes" in metrics and "val/mIoU" in metrics
    assert ("loss_auxiliary" in metrics) == (layout != "voc")


def test_evaluate_says_the_same(made: tuple[str, str, Path], tmp_path: Path) -> None:
    _, data, path = made
    summary = json.loads((path / "summary.json").read_text())
    result = boxless.evaluate(str(path), data, str(tmp_path / "e"), quiet=True)
    assert result.images == 4 and not result.skipped
    assert result.scores["segments"].as_dict() == pytest.approx(summary["scores"]["segments"])
    written = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert written["scores"]["segments"] == pytest.approx(summary["scores"]["segments"])
    assert "segments: mIoU" in str(result) and "in no mean" in str(result)
    assert (tmp_path / "e" / "examples.png").is_file() and not (tmp_path / "e" / "detections.json").exists()


def test_predicted_class_maps_are_those_that_were_measured(made: tuple[str, str, Path], tmp_path: Path) -> None:
    _, data, path = made
    labels = read_segmentation(data, "val")
    files = [str(image.path) for image in labels.images]
    result = boxless.predict(str(path), files, str(tmp_path / "p"), quiet=True)
    assert result.images == 4 and result.objects is None and "class maps of 4 images" in str(result)
    written = json.loads(result.path.read_text())
    assert tuple(written["classes"]) == labels.classes and not written["skipped"]
    found = {Path(entry["file_name"]).name: entry for entry in written["images"]}
    right = valid = 0
    for image in labels.images:
        entry = found[image.path.name]
        with Image.open(tmp_path / "p" / entry["class_map"]) as file:
            assert file.mode == "P" and file.size == (image.width, image.height) == (entry["width"], entry["height"])
            assert file.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]  # VOC's aeroplane and bicycle
            classes = np.asarray(file)
        truth = class_map(image, len(labels.classes))
        assert classes.max() < len(labels.classes)
        right += int((classes == truth)[truth != 255].sum())
        valid += int((truth != 255).sum())
    summary = json.loads((path / "summary.json").read_text())
    assert right / valid == pytest.approx(summary["scores"]["segments"]["pixel accuracy"])
    assert len(list((tmp_path / "p" / "images").rglob("*.jpg"))) == 4


class Waves(nn.Module):
    """Two classes whose logits change along the image."""

    values = np.sin(1 + np.arange(8) ** 2)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert all(image.shape == (3, 4, 8) for image in images)
        wave = torch.from_numpy(self.values).float().expand(4, 8)
        return [{"logits": torch.stack([torch.zeros(4, 8), wave])} for _ in images]


@pytest.mark.parametrize("corners", [False, True])
def test_logits_are_enlarged_to_the_source_as_inside_the_detector(tmp_path: Path, corners: bool) -> None:
    width = 104
    Image.new("RGB", (width, width // 2)).save(tmp_path / "x.png")
    detector = FCNConfig(align_corners=corners)
    recipe = FinetuneRecipe(detector=detector, min_size=(4,), max_size=8, precision="32-true")
    ((_, found),) = segment_images(Waves(), find_images(str(tmp_path / "x.png")), recipe)
    apart, together = (np.arange(width) + 0.5) * 8 / width - 0.5, np.linspace(0, 7, width)
    expected = [np.interp(places, np.arange(8), Waves.values) > 0 for places in (apart, together)]
    assert (expected[0] != expected[1]).any() and (found == expected[corners]).all()


def test_mistakes_cost_one_line(
    coco: str, voc: str, cityscapes: str, made: tuple[str, str, Path], tmp_path: Path
) -> None:
    layout, _, path = made
    other = voc if layout != "voc" else cityscapes
    with pytest.raises(UserError, match="are not those that were learned"):
        boxless.evaluate(str(path), other, quiet=True)
    with pytest.raises(UserError, match="torchvision's FCN has another head"):
        boxless.export(str(path), str(tmp_path / "d.safetensors"), "torchvision-detector", quiet=True)
    if layout != "coco":
        return
    boxless.export(str(path), str(tmp_path / "b.safetensors"), "torchvision-backbone", quiet=True)
    settings = {**SETTINGS, "out": str(tmp_path / "run"), "quiet": True}
    with pytest.raises(UserError, match=r"crop: only detector.kind=fcn crops by it"):
        boxless.finetune(coco, coco, **{**settings, "detector.kind": "faster_rcnn"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"dilates a ResNet"):
        boxless.finetune(coco, coco, **{**settings, "trunk.backbone": "mobilenet_v2"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"compare measures AP"):
        boxless.compare(coco, coco, coco, out=str(tmp_path / "c"), **{"finetune.detector.kind": "fcn"})  # type: ignore[arg-type]
