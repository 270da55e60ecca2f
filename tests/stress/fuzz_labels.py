"""Annotations in every format, sound but for what was changed in them; and proposals taken from COCO files."""

import json
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
from fuzz_images import _photographs
from fuzz_mutations import LENGTHS, NAMES, Case, broken_bytes, broken_json, hostile, json_bytes

from boxless.data.annotations.read import read_labels
from boxless.data.annotations.types import LabelledData, problem_report
from boxless.data.detection import DetectionDataset
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.proposals.from_coco import from_coco

WIDTH, HEIGHT = 48, 40
SQUARE = [8, 8, 30, 8, 30, 30, 8, 30]
COLUMNS = {"size": [HEIGHT, WIDTH], "counts": [0, 400, WIDTH * HEIGHT - 400]}


@cache
def _image() -> bytes:
    pixels = np.asarray(_photographs()[0].resize((WIDTH, HEIGHT)))
    return bytes(cv2.imencode(".png", pixels)[1])


def _images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_image())


def sound(data: LabelledData, folder: Path, absolute: str = "") -> None:
    """Assert what all that computes with labels takes for granted, then have an image read as training does.

    `absolute`: text of a file that may name images by absolute paths, which are taken as they are.
    """
    assert len(data.classes) == len(data.category_ids) and len(set(data.category_ids)) == len(data.category_ids)
    assert data.images and len({image.image_id for image in data.images}) == len(data.images)
    assert all(name and isinstance(name, str) for name in data.classes if name), "a class without a name"
    for image in data.images:
        inside = image.path.resolve().is_relative_to(folder.resolve())
        assert inside or json.dumps(str(image.path)) in absolute, f"reads outside the folder: {image.path}"
        assert image.path.is_file() and image.width > 0 and image.height > 0
        boxes, count = image.boxes, len(image.boxes)
        assert boxes.dtype == np.float32 and boxes.shape == (count, 4) and np.isfinite(boxes).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes <= np.array([image.width, image.height] * 2, np.float32)).all()
        assert len(image.labels) == len(image.crowd) == count
        assert ((image.labels >= 0) & (image.labels < len(data.classes))).all()
        assert image.masks is None or len(image.masks) == count
        assert np.isfinite(data.keypoints_of(image)).all()
        if (image.width, image.height) == (WIDTH, HEIGHT):
            _trains(data.subset([data.images.index(image)]))
    assert str(problem_report(data.problems)).encode(), "a message that cannot be printed"
    json.dumps(data.as_coco(), allow_nan=False)


def _trains(data: LabelledData) -> None:
    target = DetectionDataset(data, (HEIGHT,), 64, training=False, masks=data.has_masks)[0].target
    assert target["boxes"].isfinite().all()
    if "masks" in target and len(target["masks"]):
        assert int(target["masks"].max()) <= 1


def _coco_content() -> dict[str, Any]:
    people = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
    points = {"keypoints": [10, 10, 2, 12, 9, 1, 0, 0, 0], "num_keypoints": 2}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "neg_category_ids": [2]},
            {"id": 2, "file_name": "sub/b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 3, "coco_url": "http://images/sub/c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 22, 22], "iscrowd": 0, **points},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [8, 8, 22, 22], "segmentation": [SQUARE]},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 10, 40], "iscrowd": 1, "segmentation": COLUMNS},
            {"id": 4, "image_id": 3, "category_id": 2, "bbox": [1.5, 2.5, 7.25, 9]},
        ],
        "categories": [people, {"id": 2, "name": "cat", "frequency": "r"}],
    }


def _coco(random: Random, folder: Path) -> None:
    _images(folder, "a.png", "sub/b.png", "sub/c.png")
    content = broken_json(random, _coco_content())
    if random.random() < 0.1:
        counts = random.choice(("o", "o" * 300_000, "P;`3!", [WIDTH * HEIGHT + 0.0], [True, WIDTH * HEIGHT - 1]))
        entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
        content = _coco_content() | {"annotations": [entry | {"segmentation": COLUMNS | {"counts": counts}}]}
    path = folder / "labels.json"
    path.write_bytes(json_bytes(random, content))
    sound(read_labels(path), folder, path.read_text(errors="replace"))


def _crowded(kind: str, random: Random, folder: Path) -> None:
    """A million boxes in one image."""
    _images(folder, "images/a.png")
    many = 1_000_000
    if kind == "coco":
        one = '{"id": %d, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}'
        parts = (
            json.dumps(_coco_content() | {"annotations": [0]})
            .replace("sub/", "")
            .replace("[0]", "[" + ",".join(one % n for n in range(many)) + "]")
        )
        where = folder / "images" / "labels.json"
        where.write_text(parts)
    elif kind == "voc":
        (folder / "Annotations").mkdir()
        (folder / "images").rename(folder / "JPEGImages")
        (folder / "Annotations" / "a.xml").write_text(f"<annotation>{_object() * many}</annotation>")
        where = folder
    else:
        (folder / "labels").mkdir()
        (folder / "labels" / "a.txt").write_text("".join(f"0 0.5 0.5 0.{n:06d}1 0.5\n" for n in range(many)))
        where = folder / "data.yaml"
        where.write_text("names: [cat]\ntrain: images\n")
    data = read_labels(where)
    assert max(len(image.boxes) for image in data.images) <= 10_000, "no detector has the memory for it"


def _object(name: str = "cat", *sides: object) -> str:
    box = zip(("xmin", "ymin", "xmax", "ymax"), sides or (5, 6, 20, 30), strict=False)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in box)
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{inner}</bndbox></object>"


def _voc(random: Random, folder: Path) -> None:
    _images(folder, "JPEGImages/a.png", "JPEGImages/b.png")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    whole = f"<annotation><filename>a.png</filename>{size}{_object()}{_object('dog', 1, 1, 48, 40)}</annotation>"
    text, split = whole, "a\nb\n"
    for _ in range(random.choice((1, 1, 2))):
        match random.randrange(8):
            case 0:
                value = hostile(random)
                old = random.choice(("48", "40", "5", "20", "30", "cat", "a.png", "0"))
                text = text.replace(f">{old}<", f">{_printed(value)}<", 1)
            case 1:
                text = broken_bytes(random, text.encode()).decode("utf-8", "replace")
            case 2:
                bomb = "".join(
                    f'<!ENTITY {c} "{(f"&{p};" * 20) if p else "ha"}">'
                    for p, c in zip(("", *"abcdefg"), "abcdefgh", strict=True)
                )
                outside = '<!ENTITY h SYSTEM "file:///etc/passwd">'
                text = f"<!DOCTYPE x [{random.choice((bomb, outside))}]>" + whole.replace("cat", "&h;")
            case 3:
                text = text.replace("<object>", "<object>" * random.choice((2, 2, 2, 2, 2, 2, 2, 2, 2, 100_000)))
            case 4:
                text = text.replace("<bndbox>", random.choice(("<bndbox/><bndbox>", "<box>", '<bndbox a="1">')))
            case 5:
                split = random.choice(
                    ("../a\n", "/etc/passwd\n", "a\na\nb\n", "a 1\nb -1\n", "\0\n", "x" * 5000, "../../JPEGImages/a\n")
                )
            case 6:
                text = f'<?xml version="1.0" encoding="{random.choice(("utf-16", "utf-7", "latin-1", "x"))}"?>{text}'
            case 7:
                text = text.replace("a.png", random.choice(("../../etc/passwd", "..", "y" * 300, "b.png")))
    (folder / "Annotations" / "a.xml").write_text(text, errors="replace")
    (folder / "Annotations" / "b.xml").write_text(whole.replace("a.png", "b.png"))
    if random.random() < 0.3:
        (folder / "Annotations" / "b.xml").rename(folder / "Annotations" / f"{random.choice(('c', 'b' * 200))}.xml")
    (folder / "ImageSets" / "Main" / "train.txt").write_text(split)
    sound(read_labels(folder), folder)


def _yolo(random: Random, folder: Path) -> None:
    _images(folder, "images/train/a.png", "images/train/b.png")
    (folder / "labels" / "train").mkdir(parents=True)
    lines = ["0 0.5 0.5 0.5 0.5", "1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9", "1 0.25 0.25 0.5 0.5"]
    settings: dict[str, object] = {"path": ".", "train": "images/train", "names": ["cat", "dog"]}
    text = None
    for _ in range(random.choice((1, 1, 2))):
        match random.randrange(6):
            case 0 | 1:
                fields = random.choice(lines).split()
                fields[random.randrange(len(fields))] = _printed(hostile(random))
                lines.append(" ".join(fields))
            case 2:
                settings = broken_json(random, settings)
                settings = settings if isinstance(settings, dict) else {"train": settings}
            case 3:
                text = broken_bytes(random, json.dumps(settings).encode())
            case 4:
                text = _yaml_bomb(random, settings)
            case 5:
                settings["train"] = random.choice(
                    (["images/train"] * 3, "list.txt", "/etc/passwd", "/dev/zero", *NAMES)
                )
    (folder / "list.txt").write_text(
        "\n".join(("images/train/a.png", *map(_printed, random.sample(NAMES, 4)))), errors="replace"
    )
    blurred = "\n".join(lines)
    label = broken_bytes(random, blurred.encode()) if random.random() < 0.3 else blurred.encode(errors="replace")
    (folder / "labels" / "train" / "a.txt").write_bytes(label)
    (folder / "data.yaml").write_bytes(text if text is not None else json.dumps(settings, default=str).encode())
    sound(read_labels(folder / "data.yaml"), folder)


def _yaml_bomb(random: Random, settings: dict[str, object]) -> bytes:
    """YAML that grows, nests, or asks for objects."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    maps = ["m0: &m0 {x: 1, y: 2}"] + [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}, *m{n - 1}]}}" for n in range(1, 40)]
    tag = random.choice(
        (
            "!!python/object/apply:os.system [id]",
            "!!python/name:os.system",
            "!!timestamp x",
            "!!int ''",
            "!!bool x",
            "!!float ,",
            "2001-99-99",
            "!!binary 5",
            "!!set [1]",
            "!!omap 3",
            "!x y",
            "0b",
            "1:99:99",
            "-0x_",
            "!!null x",
        )
    )
    body = json.dumps(settings)[1:-1].replace(', "', '\n"')
    key = random.choice(("path", "names", "train", "names", "extra"))
    return "\n".join(
        random.choice(
            (
                [*rows, body, f"{key}: *a11"],
                [*maps, body, f"{key}: *m39"],
                [body, f"{key}: {tag}"],
                [body, f"{key}: {'[' * (depth := random.choice((50, 1200, 20_000)))}{']' * depth}"],
                [body, f"? {{a: 1}}\n: {key}", "? [1, 2]\n: 3"],
                ["- &r [*r]"],
                [body, "self: &s {a: *s}"],
                [body, f"{key}: &s [1, *s]"],
            )
        )
    ).encode()


def _cityscapes(random: Random, folder: Path) -> None:
    _images(folder, "leftImg8bit/train/x/x_0_0_leftImg8bit.png")
    labels = folder / "gtFine" / "train" / "x"
    labels.mkdir(parents=True)
    prefix = labels / "x_0_0_gtFine"
    if random.random() < 0.4:
        numbers = np.zeros((HEIGHT, WIDTH), np.uint16)
        numbers[5:20, 5:30], numbers[22:30] = 26001, 24
        match random.randrange(4):
            case 0:
                numbers = np.frombuffer(random.randbytes(2 * WIDTH * HEIGHT), np.uint16).reshape(HEIGHT, WIDTH)
            case 1:
                numbers = np.dstack([numbers] * random.choice((3, 4)))
            case 2:
                numbers = numbers[: random.choice((1, 9)), : random.choice((1, 9))]
        data = bytes(cv2.imencode(".png", numbers)[1])
        if random.random() < 0.7:
            data = broken_bytes(random, data)
            if random.random() < 0.3:
                data = data.replace(b"\0\0\0" + bytes([WIDTH]), (random.choice(LENGTHS) % 2**32).to_bytes(4, "big"), 1)
        Path(f"{prefix}_instanceIds.png").write_bytes(data)
    else:
        polygons = [{"label": name, "polygon": [[5, 5], [30, 5], [30, 20]]} for name in ("car", "persongroup", "road")]
        content = {"imgWidth": WIDTH, "imgHeight": HEIGHT, "objects": polygons}
        Path(f"{prefix}_polygons.json").write_bytes(json_bytes(random, broken_json(random, content)))
    sound(read_labels(folder), folder)


def _tools(random: Random, folder: Path) -> None:
    """Labels of labelling tools: Labelme, Supervisely, CVAT."""
    which = random.randrange(3)
    square = [[8, 8], [30, 8], [30, 30]]
    if which == 0:
        _images(folder, "a.png")
        shape = {"label": "cat", "points": square, "shape_type": "polygon", "group_id": 1}
        content = {"shapes": [shape, {**shape, "points": square[::2], "shape_type": "circle"}], "imagePath": "a.png"}
        (folder / "a.json").write_bytes(json_bytes(random, broken_json(random, content)))
    elif which == 1:
        _images(folder, "img/a.png")
        (folder / "ann").mkdir()
        shape = {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": square}}
        content = {"size": {"width": WIDTH, "height": HEIGHT}, "objects": [shape]}
        (folder / "ann" / "a.png.json").write_bytes(json_bytes(random, broken_json(random, content)))
        meta = broken_json(random, {"classes": [{"title": "cat"}], "tags": []})
        (folder / "meta.json").write_bytes(json_bytes(random, meta))
    else:
        _images(folder, "a.png")
        box = "<box label='cat' xtl='8' ytl='8' xbr='30' ybr='30' rotation='5'/>"
        shapes = (
            f"{box}<polygon label='cat' points='8,8;30,8;30,30'/><ellipse label='cat' cx='9' cy='9' rx='5' ry='5'/>"
        )
        text = f"<annotations><image name='a.png' width='{WIDTH}' height='{HEIGHT}'>{shapes}</image></annotations>"
        old = random.choice(("'8'", "'cat'", "'a.png'", "'5'", f"'{WIDTH}'", "30,8", "<image", "'9'"))
        value = str(hostile(random)).replace("<", "").replace("'", "")
        text = text.replace(old, f"'{value}'" if old[0] == "'" else value, 1)
        (folder / "annotations.xml").write_text(text, errors="replace")
    sound(read_labels(folder), folder)


def _taken(random: Random, folder: Path) -> None:
    """Proposals from a COCO file."""
    _images(folder, "images/a.png", "images/sub/b.png", "images/c.png")
    path = folder / "labels.json"
    content = _coco_content()
    del content["images"][2], content["annotations"][3]
    path.write_bytes(json_bytes(random, broken_json(random, content)))
    table = from_coco(index_images(folder / "images"), path)
    boxes, sizes = table.values, np.repeat(table.sizes, table.counts(), 0)
    assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= np.tile(sizes, 2)).all()
    assert (table.sizes <= (WIDTH, HEIGHT)).all() or table.sizes.max() < 1e7
    table.write(folder / "boxes.parquet")


def _printed(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode() if isinstance(value, str) else json.dumps(value)


KINDS: dict[str, tuple[int, Case]] = {
    "coco": (3000, _coco),
    "voc": (1500, _voc),
    "yolo": (2500, _yolo),
    "cityscapes": (1000, _cityscapes),
    "tools": (1500, _tools),
    **{f"crowded {kind}": (1, partial(_crowded, kind)) for kind in ("coco", "voc", "yolo")},
    "from_coco": (800, _taken),
}

__all__ = ["KINDS", "UserError"]
