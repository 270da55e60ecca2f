"""Labels that are sound but odd are read as they were meant, and what is not sound stops a run in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from boxless.data.annotations.read import read_labels
from boxless.data.annotations.types import LabelledData, check_losses
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, average_precision

WIDTH, HEIGHT = 60, 40
BOXES = {"a.png": [(0, [5, 6, 20, 12]), (1, [30, 8, 15, 20])], "b.png": [(1, [2, 3, 10, 9]), (0, [40, 20, 12, 14])]}
"""Class and x, y, width, height, px, of the objects of each image."""


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (number, 100, 100)).save(folder / name)


def plain() -> dict[str, Any]:
    entries = [(n, label, box) for n, objects in enumerate(BOXES.values(), 1) for label, box in objects]
    return {
        "images": [{"id": n, "file_name": f, "width": WIDTH, "height": HEIGHT} for n, f in enumerate(BOXES, 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, label, box) in enumerate(entries, 1)
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }


def content(data: LabelledData) -> dict[str, list[tuple[str, list[float]]]]:
    """Class names and boxes, xyxy, of each file, sorted."""
    return {
        image.path.name: sorted(
            (data.classes[label], box) for label, box in zip(image.labels, image.boxes.tolist(), strict=True)
        )
        for image in data.images
    }


EXPECTED = {
    name: sorted((("red", "blue")[label], [x, y, x + w, y + h]) for label, (x, y, w, h) in objects)
    for name, objects in BOXES.items()
}


def write(folder: Path, labels: dict[str, Any]) -> Path:
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "labels.json"


def _each(key: str, name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda labels: [entry.update({name: change(entry[name])}) for entry in labels[key]] and None


def _restart(labels: dict[str, Any]) -> None:
    for n, entry in enumerate(labels["annotations"]):
        entry["id"] = n % 2


def _one_entry_per_object(labels: dict[str, Any]) -> None:
    files = {image["id"]: image for image in labels["images"]}
    labels["images"] = [files[a["image_id"]] | {"id": n} for n, a in enumerate(labels["annotations"])]
    for n, annotation in enumerate(labels["annotations"]):
        annotation["image_id"] = n


def _names_as_ids(labels: dict[str, Any]) -> None:
    names = {1: "class-red", 2: "class-blue"}
    _each("categories", "id", names.get)(labels)
    _each("annotations", "category_id", names.get)(labels)


def _twice(labels: dict[str, Any]) -> None:
    labels["annotations"] += [entry | {"id": entry["id"] + 100} for entry in labels["annotations"]]


def _square(box: list[int]) -> list[list[int]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _rle(box: list[int]) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def _masks_alone(mask: Callable[[list[int]], Any], empty: Any) -> Callable[[dict[str, Any]], None]:
    def change(labels: dict[str, Any]) -> None:
        for entry in labels["annotations"]:
            entry.update(segmentation=mask(entry["bbox"]), bbox=empty)

    return change


ODD: dict[str, Callable[[dict[str, Any]], None]] = {
    "annotation ids that restart": _restart,
    "annotation ids of any kind": _each("annotations", "id", lambda n: {"n": n}),
    "image ids as text here": _each("images", "id", str),
    "image ids as text there": _each("annotations", "image_id", str),
    "image ids with zeros before": _each("annotations", "image_id", "{:06d}".format),
    "category ids as text": _each("categories", "id", str),
    "ids as floats": _each("annotations", "category_id", float),
    "category ids that are names": _names_as_ids,
    "an entry for each object": _one_entry_per_object,
    "objects twice": _twice,
    "polygons, no boxes": _masks_alone(_square, []),
    "polygons, boxes without area": _masks_alone(_square, [0, 0, 0, 0]),
    "run lengths, no boxes": _masks_alone(_rle, None),
    "Windows' paths": _each("images", "file_name", "images\\{}".format),
    "another machine's": _each("images", "file_name", "C:\\Users\\me\\images\\{}".format),
    "another machine's folders": _each("images", "file_name", "/mnt/other/{}".format),
    "steps outwards": _each("images", "file_name", "../../images/{}".format),
    "sizes as text": _each("images", "width", str),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_labels_give_the_same_objects(name: str, tmp_path: Path) -> None:
    images(tmp_path / "images", *BOXES)
    ODD[name](labels := plain())
    data = read_labels(write(tmp_path, labels))
    check_losses(data)
    assert content(data) == EXPECTED and set(data.classes) == {"red", "blue"}


def _half(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda labels: [entry.update({key: value}) for entry in labels["annotations"][::2]] and None


def _shares(box: list[float]) -> list[float]:
    return [side / whole for side, whole in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]


def _shared_id(labels: dict[str, Any]) -> None:
    labels["images"][1]["id"] = 1
    _each("annotations", "image_id", lambda _: 1)(labels)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an id of two images": (_shared_id, "image id of several files, left out: a.png and b.png"),
    "shares of the image": (_each("annotations", "bbox", _shares), "as shares of the image .* multiply"),
    "corners": (_each("annotations", "bbox", lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]), "write bbox as COCO"),
    "categories from 0": (_each("annotations", "category_id", lambda n: n - 1), "category_id counts from 0 .* add 1"),
    "images from 0": (_each("annotations", "image_id", lambda n: n - 1), "image_id counts from 0 .* add 1"),
    "images from 2": (_each("annotations", "image_id", lambda n: n + 1), "image_id counts from 2 .* subtract 1"),
    "unknown images": (_half("image_id", 77), "2 of 4 objects would be left out.*unknown image_id: 77"),
    "unknown categories": (_half("category_id", "green"), "unknown category_id: 'green'"),
    "no boxes": (_half("bbox", []), "bbox: wrong number of coordinates"),
    "boxes without area": (_half("bbox", [4, 4, 0, 9]), "box without area"),
    "images that are not there": (
        lambda labels: labels["images"][1].update(file_name="gone.png"),
        "2 of 4 objects would be left out.*missing image file: .*gone.png",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_lose_objects_stops_in_one_line(name: str, tmp_path: Path) -> None:
    images(tmp_path, *BOXES)
    change, message = WRONG[name]
    change(labels := plain())
    with pytest.raises(UserError, match=rf"labels\.json: [^\n]*{message}[^\n]*$"):
        check_losses(read_labels(write(tmp_path, labels)))


def test_a_name_stands_for_one_file_only(tmp_path: Path) -> None:
    images(tmp_path, "photos/day/a.png", "photos/night/a.png", "photos/day/b.png")
    labels = plain()
    _each("images", "file_name", "D:\\set\\day\\{}".format)(labels)
    data = read_labels(write(tmp_path, labels))
    assert [image.path.parent.name for image in data.images] == ["day", "day"]
    _each("images", "file_name", lambda name: name.rpartition("\\")[2])(labels)
    data = read_labels(write(tmp_path, labels))  # a.png is the name of two files
    assert [image.path.name for image in data.images] == ["b.png"]
    labels["images"][0]["file_name"] = "dusk/b.png"  # a folder that is not there is no other one
    assert len(read_labels(write(tmp_path, labels))) == 1


def test_area_is_what_the_labels_say_where_masks_were_taken_out(tmp_path: Path) -> None:
    images(tmp_path, *BOXES)
    labels = plain()
    _each("annotations", "area", lambda area: area / 2)(labels)
    labels["annotations"][3]["area"] = 10_000  # more than its box
    data = read_labels(write(tmp_path, labels))
    areas = [entry["area"] for entry in data.as_coco()["annotations"]]
    assert areas == [120, 150, 45, 168]
    found = [Detections(i.boxes, np.ones(len(i.boxes), np.float32), i.labels) for i in data.images]
    assert average_precision(data, found).ap == 1


def test_a_file_without_annotations_is_a_set_of_images(tmp_path: Path) -> None:
    images(tmp_path, *BOXES)
    labels = {"images": plain()["images"]}
    assert len(index_images(write(tmp_path, labels), tmp_path / "cache")) == 2
    assert len(read_labels(write(tmp_path, labels | {"categories": plain()["categories"]})).classes) == 2


def voc(folder: Path, first: int, names: Callable[[str], str] = lambda name: name, twice: int = 1) -> Path:
    """A VOC root; `first`: the number of the first pixel."""
    for name, objects in BOXES.items():
        images(folder / "JPEGImages", names(name))
        inner = "".join(
            f"<object><name>{('red', 'blue')[label]}</name><bndbox><xmin>{x + first}</xmin><ymin>{y + first}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h) in objects * twice
        )
        xml = (folder / "Annotations" / names(name)).with_suffix(".xml")
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(f"<annotation><filename>{name}</filename>{inner}</annotation>")
    return folder


@pytest.mark.parametrize("split", [True, False])
def test_voc_in_folders_keeps_files_of_one_name_apart(split: bool, tmp_path: Path) -> None:
    voc(tmp_path, 1, "cam1/{}".format)
    images(tmp_path / "JPEGImages", "a.png", "cam2/a.png")
    for folder in ("", "cam2/"):
        (tmp_path / f"Annotations/{folder}a.xml").parent.mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{folder}a.xml").write_text("<annotation><filename>a.png</filename></annotation>")
    if split:
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
        (tmp_path / "ImageSets" / "Main" / "default.txt").write_text("a\ncam1/a\ncam1/b\ncam2/a\n")
    data = read_labels(tmp_path)
    found = {image.image_id: image.path.relative_to(tmp_path / "JPEGImages").as_posix() for image in data.images}
    assert found == {name: f"{name}.png" for name in ("a", "cam1/a", "cam1/b", "cam2/a")}
    assert content(data.subset([1, 2])) == EXPECTED


@pytest.mark.parametrize("first", [0, 1])
def test_voc_counts_from_where_its_files_say(first: int, tmp_path: Path) -> None:
    voc(tmp_path, first)
    other = f"<object><name>red</name><bndbox><xmin>{first}</xmin><ymin>9</ymin><xmax>8</xmax><ymax>30</ymax></bndbox>"
    (tmp_path / "Annotations" / "c.xml").write_text(f"<annotation>{other}</object></annotation>")  # of another split
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    data = read_labels(tmp_path)
    assert content(data) == EXPECTED and len(data.problems) == 1 - first


def test_objects_are_dropped_if_they_are_there_twice_in_any_format(tmp_path: Path) -> None:
    data = read_labels(voc(tmp_path / "voc", 1, twice=2))
    assert content(data) == EXPECTED and len(data.problems) == 2
    labels = plain()
    labels["annotations"] = [
        entry | {"segmentation": [[x, y, x + w, y, x, y + h] if k else [x, y, x + w, y, x + w, y + h]]}
        for entry in labels["annotations"]
        for k, (x, y, w, h) in enumerate([entry["bbox"]] * 2)
    ]
    images(tmp_path, *BOXES)
    assert not read_labels(write(tmp_path, labels)).problems  # two masks in one box are two objects


def test_files_of_one_name_with_several_endings(tmp_path: Path) -> None:
    voc(tmp_path / "voc", 1)
    images(tmp_path / "voc" / "JPEGImages", "a.jpg", "b.jpg")
    assert content(read_labels(tmp_path / "voc")) == EXPECTED  # <filename> says which
    images(tmp_path / "images", "a.jpg", "a.png", "b.png")
    (tmp_path / "labels").mkdir()
    for name in "ab":
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [red]\n")
    with pytest.raises(UserError, match=r"image files of one name: a\.jpg, a\.png; keep one"):
        check_losses(read_labels(tmp_path / "data.yaml"))


def test_yolo_in_pixels_and_names_as_they_are_written(tmp_path: Path) -> None:
    images(tmp_path / "images", "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 20 20 10 10")
    (tmp_path / "data.yaml").write_text(
        "train: images\nnames: {0: yes, 1: no, 2: 010, 3: null, 4: 1e3, 5: 2020-01-01}\n"
    )
    data = read_labels(tmp_path)
    assert data.classes == ("yes", "no", "010", "null", "1e3", "2020-01-01")
    with pytest.raises(UserError, match=r"1 of 1 objects would be left out.*values not in 0\.\.1: 1 20 20"):
        check_losses(data)
