"""Folders as labelling tools export them are read, or refused in a line that names the tool and the way on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_odd_labels import BOXES, EXPECTED, HEIGHT, WIDTH, content, images, plain, voc

from boxless.data.annotations.read import read_labels
from boxless.data.annotations.types import check_losses
from boxless.errors import UserError

CORNERS = {
    name: [(("red", "blue")[label], x, y, x + w, y + h) for label, (x, y, w, h) in objects]
    for name, objects in BOXES.items()
}


def _yolo_lines(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, objects in BOXES.items():
        lines = [
            f"{label} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
            for label, (x, y, w, h) in objects
        ]
        (folder / name).with_suffix(".txt").write_text("\n".join(lines))


def label_studio(root: Path) -> Path:
    images(root / "images", *BOXES)
    _yolo_lines(root / "labels")
    (root / "classes.txt").write_text("red\nblue\n")
    (root / "notes.json").write_text(json.dumps({"categories": [{"id": 0, "name": "red"}], "info": {"year": 2026}}))
    return root


def label_img(root: Path) -> Path:
    images(root, *BOXES)
    _yolo_lines(root)
    (root / "classes.txt").write_text("red\nblue")
    return root


def label_img_voc(root: Path) -> Path:
    voc(root / "made", 1)
    for file in [*root.glob("made/*/*")]:
        file.rename(root / file.name)
    return root


def cvat_yolo(root: Path) -> Path:
    images(root / "obj_train_data", *BOXES)
    _yolo_lines(root / "obj_train_data")
    (root / "obj.names").write_text("red\nblue\n")
    (root / "train.txt").write_text("".join(f"/data/obj_train_data/{name}\n" for name in BOXES))
    return root


def roboflow(root: Path) -> Path:
    labels = plain()
    for split in ("train", "valid", "test"):
        images(root / split, *BOXES)
        (root / split / "_annotations.coco.json").write_text(json.dumps(labels if split != "test" else {"images": []}))
    return root


def roboflow_voc(root: Path) -> Path:
    label_img_voc(root / "train")
    label_img_voc(root / "valid")
    return root


def labelme(root: Path) -> Path:
    images(root, *BOXES)
    for name, objects in CORNERS.items():
        shapes: list[dict[str, Any]] = [
            {"label": label, "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}
            for label, x1, y1, x2, y2 in objects[:1]
        ]
        for label, x1, y1, x2, y2 in objects[1:]:  # in two parts
            middle = (x1 + x2) / 2
            for left, right in ((x1, middle), (middle, x2)):
                points = [[left, y1], [right, y1], [right, y2], [left, y2]]
                shapes.append({"label": label, "points": points, "shape_type": "polygon", "group_id": 7})
        labels = {"shapes": shapes, "imagePath": f"..\\set\\{name}", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / name).with_suffix(".json").write_text(json.dumps({"version": "5", "imageData": None, **labels}))
    return root


def supervisely(root: Path) -> Path:
    for split in ("train", "val"):
        images(root / split / "img", *BOXES)
        (root / split / "ann").mkdir()
        for name, objects in CORNERS.items():
            entries = [
                {"classTitle": label, "geometryType": "rectangle", "points": {"exterior": [[x1, y1], [x2, y2]]}}
                for label, x1, y1, x2, y2 in objects
            ]
            labels = {"size": {"width": WIDTH, "height": HEIGHT}, "objects": entries, "tags": []}
            (root / split / "ann" / f"{name}.json").write_text(json.dumps(labels))
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "red"}, {"title": "blue"}], "tags": []}))
    return root


def cvat(root: Path) -> Path:
    images(root / "images", *BOXES)
    text = ""
    for name, objects in CORNERS.items():
        (red, a, b, c, d), (blue, x1, y1, x2, y2) = objects
        middle, half, across = ((x1 + x2) / 2, (y1 + y2) / 2), (y2 - y1) / 2, (x2 - x1) / 2
        sides = zip(("xtl", "ytl", "xbr", "ybr"), (middle[0] - half, middle[1] - across), strict=False)
        turned = {**dict(sides), "xbr": middle[0] + half, "ybr": middle[1] + across}
        text += f'<image name="{name}" width="{WIDTH}" height="{HEIGHT}">'
        text += f'<polygon label="{red}" points="{a},{b};{c},{b};{c},{d}"/><box label="{blue}" rotation="90.0" '
        text += "".join(f'{side}="{value}" ' for side, value in turned.items()) + "/></image>"
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("red", "blue"))
    (root / "annotations.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{text}</annotations>"
    )
    return root


TOOLS: list[Callable[[Path], Path]] = [
    *(label_studio, label_img, label_img_voc, cvat_yolo, roboflow, roboflow_voc, labelme, supervisely, cvat)
]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_exports_of_labelling_tools_are_read(tool: Callable[[Path], Path], tmp_path: Path) -> None:
    root = tool(tmp_path / "set")
    for role in ("train", "val"):
        data = read_labels(root, role)
        found = {name: [(label, np_box) for label, np_box in objects] for name, objects in content(data).items()}
        assert found == {
            name: [(label, pytest.approx(box, abs=1e-3)) for label, box in objects]
            for name, objects in EXPECTED.items()
        }
        assert set(data.classes) == {"red", "blue"} and len(data) == 2 and not data.problems
        check_losses(data)
    if tool is cvat:
        assert read_labels(root / "annotations.xml").has_masks
    if tool is labelme:
        (mask,) = [mask for mask in read_labels(root).images[0].masks or () if mask]
        assert len(mask) == 2
    if tool in (roboflow, roboflow_voc, supervisely):
        assert "val" in str(read_labels(root, "val").images[0].path.relative_to(root))


def test_shapes_without_a_box_stop_a_run(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    shapes = [{"label": "red", "points": [[1, 1]], "shape_type": "point"}]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    with pytest.raises(UserError, match=r"1 of 1 objects would be left out.*shape_type without a box: 'point'"):
        check_losses(read_labels(tmp_path))


REFUSED: dict[str, tuple[str, Any, str]] = {
    "Labelme": ("0.json", {"shapes": [], "imagePath": "a.png"}, "one image of Labelme; name its folder"),
    "detections": ("found.json", [{"image_id": 1, "score": 0.5}], "detections, not labels"),
    "CreateML": ("all.json", [{"image": "a.png", "annotations": []}], "CreateML; export COCO"),
    "Label Studio": ("tasks.json", [{"data": {}, "annotations": []}], "Label Studio; export COCO"),
    "VIA": ("via.json", {"a.png1": {"filename": "a.png", "regions": []}}, "VIA; export"),
    "CVAT for video": ("annotations.xml", "<annotations><track/></annotations>", "CVAT for video; export"),
    "a table": ("_annotations.csv", "filename,width,height", "_annotations.csv is a table; convert"),
}


@pytest.mark.parametrize("tool", REFUSED)
def test_labels_that_are_not_read_are_told_whose_they_are(tool: str, tmp_path: Path) -> None:
    name, labels, message = REFUSED[tool]
    images(tmp_path, "a.png")
    (tmp_path / name).write_text(labels if isinstance(labels, str) else json.dumps(labels))
    places = [tmp_path / name] if tool == "Labelme" else [tmp_path, tmp_path / name]  # its folder is read
    for place in places:
        with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
            read_labels(place)
