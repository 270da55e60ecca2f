import json

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from boxless.data.annotations.cityscapes import cityscapes_files
from boxless.data.annotations.read import read_labels
from boxless.data.classification import read_classified
from boxless.errors import UserError

# Drawn in this order: later ones lie over earlier ones. Of every polygon the covered pixels, ends included.
OBJECTS = [
    ("road", (0, 30, 79, 39), 7),
    ("car", (5, 10, 30, 25), 26000),
    ("car", (20, 15, 40, 35), 26001),
    ("persongroup", (50, 5, 60, 12), 24),
    ("license plate", (10, 20, 15, 22), None),  # of a negative id: covers nothing
    ("caravan", (70, 0, 79, 9), 29000),  # with instances, but not among the evaluated classes
    ("pole", (25, 0, 26, 39), 17),  # cuts both cars
    ("bicycle", (62, 20, 70, 28), 33000),
]


@pytest.fixture
def root(tmp_path, shared_data):
    """Two real images in Cityscapes' folders, one with instance numbers and one with polygons of the same objects."""
    numbers = np.zeros((40, 80), np.uint16)
    for _, (x1, y1, x2, y2), number in OBJECTS:
        if number is not None:
            numbers[y1 : y2 + 1, x1 : x2 + 1] = number
    polygons = [
        {"label": name, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]} for name, (x1, y1, x2, y2), _ in OBJECTS
    ]
    sources = sorted((shared_data / "coco256" / "images").rglob("*.jpg"))
    for place, (city, source) in enumerate(zip(("bonn", "aachen"), sources, strict=False)):
        images, labels = (tmp_path / part / "train" / city for part in ("leftImg8bit", "gtFine"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        name = f"{city}_000000_00000{place}"
        Image.open(source).convert("RGB").resize((80, 40)).save(images / f"{name}_leftImg8bit.png")
        if city == "bonn":
            cv2.imwrite(str(labels / f"{name}_gtFine_instanceIds.png"), numbers)
        else:
            document = {"imgHeight": 40, "imgWidth": 80, "objects": polygons}
            (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps(document))
    return tmp_path


def test_instance_numbers_and_polygons_give_the_same_objects(root):
    data = read_labels(root, "train")
    assert [image.image_id for image in data.images] == ["aachen_000000_000001", "bonn_000000_000000"]
    assert data.classes == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert data.category_ids == (24, 25, 26, 27, 28, 31, 32, 33) and not data.problems
    painted = np.zeros((40, 80), int)
    for _, (x1, y1, x2, y2), number in OBJECTS:
        if number is not None:
            painted[y1 : y2 + 1, x1 : x2 + 1] = number
    for image in data.images:
        assert (image.width, image.height) == (80, 40)
        assert [data.classes[k] for k in image.labels] == ["person", "car", "car", "bicycle"]
        assert image.crowd.tolist() == [True, False, False, False]  # the group
        for number, box, mask in zip((24, 26000, 26001, 33000), image.boxes, image.masks, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(mask), painted == number)
            rows, columns = np.nonzero(painted == number)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert data.as_coco()["annotations"][1]["area"] == (painted == 26000).sum()


def test_what_is_not_there_is_named(root):
    with pytest.raises(UserError, match=r"leftImg8bit/val: no such folder; expected leftImg8bit/SPLIT.*found: train"):
        read_labels(root, "val")
    (file, _) = cityscapes_files(root, "train")
    file.label("polygons.json").write_text("{")
    data = read_labels(f"{root}:train")
    assert len(data) == 1 and "label file cannot be read" in data.problems[0].message
    cars = read_labels(root, "train", classes=["zebra", "car"])
    assert cars.images[0].labels.tolist() == [1, 1] and len(set(cars.category_ids)) == 2


def test_objects_of_a_root_are_classified_by_their_classes(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = read_classified(str(root), "train", objects=True)
    assert data.classes == read_labels(root).classes
    assert [data.classes[label] for label in data.labels] == ["car", "car", "bicycle"] * 2
