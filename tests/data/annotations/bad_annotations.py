"""Writes small labelled data sets, one per format, in which every object but the first two is broken in its own way.

Each has the images good.png and bare.png (100 x 80 px; bare has no objects) and the classes cat and dog. The sound
objects are a cat at 10 20 30 60 and a dog at 0 0 100 80 (x1 y1 x2 y2, px), both in good.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 100, 80
SOUND_BOXES = [[10, 20, 30, 60], [0, 0, 100, 80]]


@dataclass(frozen=True)
class BadLabels:
    """`where` to read, the (entry, message) patterns of every problem, and the boxes that were mended, not left out."""

    where: Path
    problems: list[tuple[str, str]]
    mended: list[list[float]]


def write_bad_annotations(folder: Path) -> dict[str, BadLabels]:
    """Write all three data sets below `folder`; return format -> what reading it must give."""
    return {"coco": write_coco(folder / "coco"), "voc": write_voc(folder / "voc"), "yolo": write_yolo(folder / "yolo")}


def write_coco(folder: Path) -> BadLabels:
    """Write a COCO data set."""
    _images(folder / "images")
    nan, huge = float("nan"), 10**400
    ring = {"size": [HEIGHT, WIDTH], "counts": [0, 10, HEIGHT * WIDTH - 10]}
    broken: list[tuple[Any, str, str]] = [  # changes to a sound annotation, entry, message
        ({"id": 3, "image_id": 77}, "annotation 3", "unknown image_id: 77"),
        ({"id": 4, "image_id": [1]}, "annotation 4", "unknown image_id"),
        ({"id": 5, "category_id": 9}, "annotation 5", "unknown category_id: 9"),
        ({"id": 6, "category_id": None}, "annotation 6", "unknown category_id: None"),
        ({"id": 7, "bbox": [10, 20, 0, 5]}, "annotation 7", "box without area: 0 x 5"),
        ({"id": 8, "bbox": [10, 20, 5, -5]}, "annotation 8", "box without area: 5 x -5"),
        ({"id": 9, "bbox": [150, 10, 20, 20]}, "annotation 9", "box outside the image: 150 10 170 30 .* 100 x 80"),
        ({"id": 10, "bbox": [90, 70, 20, 20]}, "annotation 10", "box reaches out of the image, clipped"),
        ({"id": 11, "bbox": [nan, 0, 5, 5]}, "annotation 11", "bbox: coordinate is not finite: nan"),
        ({"id": 12, "bbox": [0, 0, float("inf"), 5]}, "annotation 12", "bbox: coordinate is not finite: inf"),
        ({"id": 13, "bbox": [0, 0, huge, 5]}, "annotation 13", "bbox: coordinate is not finite"),
        ({"id": 14, "bbox": [1, 2, 3]}, "annotation 14", "bbox: wrong number of coordinates: expected 4, has 3"),
        ({"id": 15, "bbox": [1, 2, "3", 4]}, "annotation 15", "bbox: coordinate is not a number: '3'"),
        ({"id": 16, "bbox": None}, "annotation 16", "bbox: wrong number of coordinates: expected 4, is NoneType"),
        ({"id": 17, "bbox": [0, 0, True, 4]}, "annotation 17", "bbox: coordinate is not a number: True"),
        ("text", r"annotations\[17\]", "annotation is not a dict"),
        ({"id": 20, "segmentation": [[1, 1, 5, 5]]}, "annotation 20", "polygon with fewer than 3 points.*kept the box"),
        ({"id": 21, "segmentation": [[1, 1, 5, 5, nan, 3]]}, "annotation 21", "polygon coordinate is not finite"),
        ({"id": 22, "segmentation": {"size": [5, 5], "counts": [25]}}, "annotation 22", "RLE size is not the image's"),
        ({"id": 23, "segmentation": ring | {"counts": [7]}}, "annotation 23", "RLE counts do not add up"),
        ({"id": 24, "segmentation": ring | {"counts": "oo"}}, "annotation 24", "RLE counts do not add up"),
        ({"id": 25, "segmentation": 5}, "annotation 25", "mask is neither polygons nor RLE"),
    ]
    sound = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 20, 40], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [-0.5, 0, 100.9, 80], "iscrowd": 1, "segmentation": ring},
    ]
    images = [
        {"id": 1, "file_name": "good.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "bare.png", "width": None, "height": "80"},
        {"id": 3, "file_name": "missing.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "bare.png", "width": WIDTH, "height": HEIGHT},
        {"file_name": "bare.png"},
        {"id": 6},
        {"id": 7, "file_name": "text.png"},
    ]
    categories = [
        {"id": 8, "name": "dog"},
        {"id": 3, "name": "cat"},
        {"id": 4, "name": " "},
        {"id": 3, "name": "cow"},
        {"id": "x", "name": "cow"},
        {"id": 11, "name": "dog"},
    ]
    annotations = sound + [c if isinstance(c, str) else sound[0] | c for c, _, _ in broken]
    annotations.append({"id": 30, "image_id": 3, "category_id": 3, "bbox": [1, 1, 5, 5]})  # goes with its missing image
    path = folder / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    others = [
        ("image 3", "missing image file: .*missing.png"),
        ("image 2", "image entry is there twice"),
        (r"images\[4\]", "image without an id"),
        ("image 6", "image without a file_name"),
        ("image 7", "unreadable image file: .*not an image"),
        ("image 2", "width or height is no size, taken from the file: 100 x 80"),
        ("category 4", "empty category name"),
        ("category 3", "duplicate category id"),
        (r"categories\[4\]", "category without an integer id"),
        ("category 11", "duplicate category name, joined with the first: 'dog'"),
        ("labels", "objects labelled twice, left out: 6 of 9"),
    ]
    return BadLabels(path, [(entry, message) for _, entry, message in broken] + others, [[90, 70, 100, 80]])


def write_voc(folder: Path) -> BadLabels:
    """Write a VOC data set."""
    _images(folder / "JPEGImages")
    dog = _voc_object("dog", 1, 1, 100, 80, "<difficult>1</difficult>")
    cat = _voc_object("cat", 11, 21, 30, 60)
    broken = [
        (_voc_object("", 1, 1, 5, 5), "object 3", "object without <name>"),
        ("<object><name>cat</name></object>", r"object 4 \(cat\)", "object without <bndbox>"),
        (_voc_object("cat", "", 1, 5, 5), r"object 5 \(cat\)", "wrong number of coordinates: <xmin> is missing"),
        (_voc_object("cat", "ten", 1, 5, 5), r"object 6 \(cat\)", "coordinate is not a number: <xmin> ten"),
        (_voc_object("cat", 1, "nan", 5, 5), r"object 7 \(cat\)", "coordinate is not finite: <ymin> nan"),
        (_voc_object("cat", 1, 1, "1e999", 5), r"object 8 \(cat\)", "coordinate is not finite: <xmax> 1e999"),
        (_voc_object("cat", 20, 20, 10, 30), r"object 9 \(cat\)", "box without area: -9 x 11"),
        (_voc_object("cat", 201, 1, 220, 5), r"object 10 \(cat\)", "box outside the image"),
        (_voc_object("dog", 51, 41, 140, 60), r"object 11 \(dog\)", "box reaches out of the image, clipped"),
    ]
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    files = {
        "good": f"<annotation>{size}{cat}{dog}{''.join(text for text, _, _ in broken)}</annotation>",
        "bare": "<annotation/>",
        "missing": f"<annotation>{size}{cat}</annotation>",
        "text": f"<annotation>{cat}</annotation>",
        "unclosed": "<annotation><object>",
        "bomb": bomb,
        "encoding": '<?xml version="1.0" encoding="klingon"?><annotation/>',
    }
    (folder / "Annotations").mkdir()
    for name, text in files.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for name in ("unclosed", "bomb", "encoding"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / f"{name}.png")
    split = folder / "ImageSets" / "Main" / "train.txt"
    split.parent.mkdir(parents=True)
    split.write_text("\n".join([*files, "unlisted", "good"]) + "\n")
    others = [
        ("file", "missing image file: .*missing"),
        ("file", "unreadable image file: .*not an image"),
        ("file", "annotation file cannot be read: no element found"),
        ("file", "annotation file cannot be read: <!DOCTYPE> is not allowed"),
        ("file", "annotation file cannot be read: .*encoding"),
        ("file", "annotation file cannot be read: No such file"),
    ]
    return BadLabels(folder, [(entry, message) for _, entry, message in broken] + others, [[50, 40, 100, 60]])


def write_yolo(folder: Path) -> BadLabels:
    """Write a YOLO data set."""
    _images(folder / "images" / "train")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "train" / "binary.png")
    sound = ["0 0.2 0.5 0.2 0.5", "2 0 0 1 0 1 1 0 1"]
    broken = [
        ("0 0.5 0.5 0.1", "wrong number of fields: .*found 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "wrong number of fields: .*found 6"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1", "wrong number of fields: .*found 8"),
        ("cat 0.5 0.5 0.1 0.1", "not a number"),
        ("0 0.5 nan 0.1 0.1", "coordinate is not finite"),
        ("7 0.5 0.5 0.1 0.1", "class index out of range: 7, known are 0..2"),
        ("-1 0.5 0.5 0.1 0.1", "class index out of range"),
        ("0.5 0.5 0.5 0.1 0.1", "class index out of range"),
        ("1 0.5 0.5 0.1 0.1", "class index out of range: 1"),
        ("0 50 40 10 10", "values not in 0..1"),
        ("0 0.5 0.5 0 0.1", "box without area: 0 x 8"),
        ("0 0.5 0.5 -0.1 0.1", "values not in 0..1"),
        ("0 0.95 0.5 0.2 0.5", "box reaches out of the image, clipped"),
    ]
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "good.txt").write_text("\n".join([*sound, "", *(line for line, _ in broken), sound[0]]) + "\n")
    (labels / "text.txt").write_text(sound[0])
    (labels / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (folder / "data.yaml").write_text("path: /made/on/another/machine\ntrain: ../images/train\nnames: [cat, '', dog]\n")
    others = [
        ("file", "unreadable image file: .*not an image"),
        ("file", "annotation file cannot be read"),
        ("class 1", "empty category name"),
        ("labels", "objects labelled twice, left out: 1 of 4"),
    ]
    problems = [(f"line {n}", message) for n, (_, message) in enumerate(broken, 4)]
    return BadLabels(folder / "data.yaml", problems + others, [[85, 20, 100, 60]])


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("good.png", "bare.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / name)
    (folder / "text.png").write_text("not an image")


def _voc_object(name: str, xmin: object, ymin: object, xmax: object, ymax: object, more: str = "") -> str:
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # VOC's person layout; not an object
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox>{part}</object>"
