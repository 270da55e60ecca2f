"""The papers' transfer protocols, each on a few real images in its data set's own form, through the real commands."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxless
from boxless.data.annotations.read import read_labels
from boxless.errors import UserError
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.labels import choose_labels

SMALL = {
    "trunk.backbone": "resnet18",
    "trunk.fpn_channels": 16,
    "trunk.box_head_width": 32,
    "precision": "32-true",
    "iterations": 3,
    "evaluate_every": 2,
    "checkpoint_every": 1,
    "batch_size": 2,
    "min_size": (64,),
    "max_size": 96,
    "workers": 0,
    "detector.roi_samples": 16,
    "detector.rpn_proposals": 50,
    "detector.anchor_sizes": (8, 16, 32, 64, 128),
    "detector.score_threshold": 0.0,
}


@pytest.fixture(autouse=True)
def one_example(monkeypatch):
    """The figure takes longer than all the rest."""
    monkeypatch.setattr("boxless.tasks.evaluate.EXAMPLES", 1)


@pytest.fixture(scope="module")
def coco(shared_data):
    return read_labels(shared_data / "coco256", "val", format="coco")


def write_voc(root, ids, images, classes):
    """A VOC set: half of its images in trainval, half in test; every second object is difficult."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for name, image in zip(ids, images, strict=True):
        os.symlink(image.path, root / "JPEGImages" / f"{name}.jpg")
        entries = [
            f"<object><name>{classes[label]}</name><difficult>{n % 2}</difficult><bndbox><xmin>{int(box[0]) + 1}</xmin>"
            f"<ymin>{int(box[1]) + 1}</ymin><xmax>{int(box[2])}</xmax><ymax>{int(box[3])}</ymax></bndbox></object>"
            for n, (label, box) in enumerate(zip(image.labels, image.boxes, strict=True))
            if (box[2:] - box[:2] > 3).all()
        ]
        size = f"<size><width>{image.width}</width><height>{image.height}</height></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(entries)}</annotation>")
    half = len(ids) // 2
    for split, part in {"trainval": ids[:half], "test": ids[half:]}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(part))


@pytest.fixture(scope="module")
def devkit(coco, tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    few = [image for image in coco.images if 1 < len(image.boxes) < 10][:12]
    write_voc(root / "VOC2007", [f"{n:06d}" for n in range(8)], few[:8], coco.classes)
    write_voc(root / "VOC2012", [f"2008_{n:06d}" for n in range(4)], few[8:], coco.classes)
    return root


def test_voc_07_and_12_as_one_and_vocs_metric(devkit, tmp_path, capsys):
    parts = [read_labels(devkit / year, "train") for year in ("VOC2007", "VOC2012")]
    for where in (
        f"{devkit}/VOC2007:trainval+VOC2012:trainval",
        f"{devkit.parent}/VOC2007:trainval+VOC2012:trainval",  # a folder above, as other tools have it
        [f"{devkit}/VOC2007", str(devkit / "VOC2012" / "ImageSets" / "Main" / "trainval.txt")],
    ):
        data = read_labels(where)
        assert [image.image_id for image in data.images][3:5] == ["000003", "2008_000000"] and len(data) == 6
        assert data.classes == tuple(sorted({name for part in parts for name in part.classes}))
        named = [[data.classes[k] for k in image.labels] for image in data.images]
        assert named == [[part.classes[k] for k in image.labels] for part in parts for image in part.images]

    crowd = np.concatenate([image.crowd for image in choose_labels(data, FinetuneRecipe()).images])
    assert 0 < crowd.sum() < len(crowd)
    learned = choose_labels(data, FinetuneRecipe(learn_difficult=True))
    assert not any(image.crowd.any() for image in learned.images)

    settings = {**SMALL, "metric": "voc07", "learn_difficult": True}
    run = boxless.finetune(
        f"{devkit}/VOC2007:trainval+VOC2012:trainval", f"{devkit}/VOC2007:test", str(tmp_path / "run"), **settings
    )
    told = capsys.readouterr().err
    ids = sorted([*(f"{n:06d}" for n in range(4)), "2008_000000", "2008_000001"])
    digest = hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()
    assert f"learning from 6 of 6 images; SHA-256 of their ids: {digest}" in told and "11 points: AP " in told
    choice = json.loads((run.path / "labels.json").read_text())
    assert (choice["sha256"], choice["choice"], choice["seed"]) == (digest, "random", 0)
    assert list(run.summary["scores"]) == ["voc07", "bbox"] and run.summary["scores"]["voc07"]["APs"] is None
    looks = [line for line in (run.path / "metrics.csv").read_text().splitlines() if "val/" in line]
    assert {line.split(",")[1] for line in looks} == {"val/AP", "val/AP50", "val/AP75"}  # the metric's, not COCO's
    result = boxless.evaluate(str(run.path), f"{devkit}/VOC2007:test", quiet=True)
    assert result.scores["voc07"].ap == pytest.approx(run.summary["scores"]["voc07"]["AP"])
    assert "11 points: AP" in str(result) and "boxes: AP" in str(result)


def test_data_sets_that_are_not_there(devkit, tmp_path):
    (tmp_path / "VOC2007").mkdir()
    calls = {
        r"VOC2012: no such folder; expected Annotations/, JPEGImages/, ImageSets/Main/trainval.txt in it": (
            tmp_path / "VOC2012:trainval"
        ),
        r"holds the sets VOC2007, VOC2012; name one, or several: .*VOC2007:trainval\+VOC2012:trainval": devkit,
        r"VOC2007: no labels found; expected a COCO .json, a VOC root": tmp_path / "VOC2007",
        r"no such file or folder: .*nothing": f"{devkit}/VOC2007+{tmp_path}/nothing",
        r"ImageSets/Main: no val.txt; it has: test, trainval": f"{devkit}/VOC2007:val",
        r"is in both .*trainval.txt and .*trainval.txt": f"{devkit}/VOC2007+VOC2007:trainval",
    }
    for message, where in calls.items():
        with pytest.raises(UserError, match=message) as caught:
            read_labels(str(where))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def lvis(coco, tmp_path_factory):
    """Real COCO images and masks as LVIS has them: no file names, no crowds, and what was looked for in each image."""
    root = tmp_path_factory.mktemp("lvis")
    (root / "train2017").mkdir()
    shown = [image for image in coco.images if 1 < len(image.boxes) < 10][:6]
    document = coco.subset([coco.images.index(image) for image in shown]).as_coco()
    used = sorted({entry["category_id"] for entry in document["annotations"]})
    document["categories"] = [entry for entry in document["categories"] if entry["id"] in used]
    for n, category in enumerate(document["categories"]):
        count = len({entry["image_id"] for entry in document["annotations"] if entry["category_id"] == category["id"]})
        category |= {"frequency": "rcf"[n % 3], "image_count": count, "synset": "x.n.01"}
    for entry in document["annotations"]:
        del entry["iscrowd"]
    for n, (image, source) in enumerate(zip(document["images"], shown, strict=True)):
        there = {entry["category_id"] for entry in document["annotations"] if entry["image_id"] == image["id"]}
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{source.path.name}"
        image["neg_category_ids"] = [number for number in used if number not in there][n % 4 :: 3]
        image["not_exhaustive_category_ids"] = sorted(there)[: n % 2]
        os.symlink(source.path, root / "train2017" / source.path.name)
    file = root / "lvis_v1_train.json"
    file.write_text(json.dumps(document))
    return file


def test_lvis_with_repeated_rare_classes_and_its_metric(lvis, coco, tmp_path, capsys):
    data = read_labels(lvis)
    document = json.loads(lvis.read_text())
    assert not data.problems and data.has_masks and len(data.frequencies) == len(data.classes)
    for image, entry in zip(data.images, document["images"], strict=True):
        assert [data.category_ids[k] for k in image.negative] == entry["neg_category_ids"]
        assert [data.category_ids[k] for k in image.not_exhaustive] == entry["not_exhaustive_category_ids"]
        assert image.path.is_file() and image.path.parent.name == "train2017"
    again = data.as_coco()
    assert again["images"][1]["neg_category_ids"] == document["images"][1]["neg_category_ids"]

    settings = {**SMALL, "detector.kind": "mask_rcnn", "metric": "lvis", "repeat_threshold": 0.5}
    settings |= {"detector.detections": 30, "evaluate_every": 100}
    whole = boxless.finetune(str(lvis), str(lvis), str(tmp_path / "whole"), **settings)
    assert "APr" in capsys.readouterr().err
    scores = whole.summary["scores"]
    assert list(scores) == ["bbox", "segm"] and all({"APr", "APc", "APf"} <= set(each) for each in scores.values())
    result = boxless.evaluate(str(whole.path), str(lvis), quiet=True)
    assert result.scores["segm"].ap == pytest.approx(scores["segm"]["AP"])
    with pytest.raises(UserError, match="metric=lvis needs LVIS's labels"):
        val = str(tmp_path / "coco.json")
        Path(val).write_text(json.dumps(coco.as_coco()))
        boxless.finetune(str(lvis), val, str(tmp_path / "other"), **settings)


def test_mini_coco_first_by_list_and_at_random(coco, tmp_path):
    file = tmp_path / "instances.json"
    document = coco.as_coco()
    file.write_text(json.dumps({**document, "images": document["images"][::-1]}))
    val = tmp_path / "val.json"
    val.write_text(json.dumps(coco.subset(range(2)).as_coco()))
    labels = {"data": str(file), "val": str(val), "quiet": True, **SMALL, "iterations": 1}
    first = boxless.finetune(out=str(tmp_path / "first"), label_choice="first", label_fraction=0.05, **labels)
    choice = json.loads((first.path / "labels.json").read_text())
    with_objects = sorted(image.image_id for image in coco.images if (~image.crowd).any())
    assert choice["choice"] == "first"
    assert sorted(choice["images"]) == with_objects[: int(0.05 * len(with_objects))]

    given = first.path / "labels.json"
    again = boxless.finetune(out=str(tmp_path / "again"), label_list=str(given), **labels)
    other = json.loads((again.path / "labels.json").read_text())
    assert other["images"] == choice["images"] and other["sha256"] == choice["sha256"] and other["choice"] == "list"
    with pytest.raises(UserError, match="label_list: names the images; leave out label_fraction and label_count"):
        boxless.finetune(out=str(tmp_path / "x"), label_list=str(given), label_count=3, **labels)


def test_cityscapes_by_mask_rcnn(coco, tmp_path):
    root, made = tmp_path / "cityscapes", 0
    ids = {"person": 24, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
    for image in coco.images:
        labels = [(coco.classes[k], box) for k, box in zip(image.labels, image.boxes, strict=True)]
        objects = [(name, box) for name, box in labels if name in ids]
        if not objects or made == 6:
            continue
        split, name = ("train" if made < 4 else "val"), f"bonn_000000_{made:06d}"
        numbers = np.zeros((image.height, image.width), np.uint16)
        for n, (label, box) in enumerate(objects):
            x1, y1, x2, y2 = box.astype(int)
            numbers[y1:y2, x1:x2] = ids[label] * 1000 + n
        for part in ("leftImg8bit", "gtFine"):
            (root / part / split / "bonn").mkdir(parents=True, exist_ok=True)
        Image.open(image.path).convert("RGB").save(root / "leftImg8bit" / split / "bonn" / f"{name}_leftImg8bit.png")
        Image.fromarray(numbers).save(root / "gtFine" / split / "bonn" / f"{name}_gtFine_instanceIds.png")
        made += 1
    run = boxless.finetune(
        str(root), str(root), str(tmp_path / "run"), quiet=True, **SMALL, **{"detector.kind": "mask_rcnn"}
    )
    assert run.summary["labelled_images"] == 4 and set(run.summary["scores"]) == {"bbox", "segm"}
    assert boxless.evaluate(str(run.path), f"{root}:val", quiet=True).images == 2
