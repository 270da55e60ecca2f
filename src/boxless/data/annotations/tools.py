"""Labels of other tools that are not read: whose they are, and how to go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxless.untrusted import parse_json

_LARGEST = 50_000_000  # bytes; what is larger is of no tool that writes a file for each image


def _keys(*names: str) -> Callable[[Any], bool]:
    return lambda content: isinstance(content, dict) and set(names) <= content.keys()


def _list_of(*names: str) -> Callable[[Any], bool]:
    return lambda content: isinstance(content, list) and bool(content) and _keys(*names)(content[0])


def _of_via(content: Any) -> bool:
    return isinstance(content, dict) and any(_keys("filename", "regions")(entry) for entry in content.values())


_JSON: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (_keys("shapes"), "it is one image of Labelme; name its folder"),
    (_keys("objects", "size"), "it is one image of Supervisely; name the folder of its meta.json"),
    (_keys("classes", "tags"), "it is the meta.json of Supervisely; name its folder"),
    (_list_of("image_id", "score"), "it holds detections, not labels"),
    (_list_of("image", "annotations"), "it is of CreateML; export COCO JSON instead"),
    (_list_of("data", "annotations"), "it is of Label Studio; export COCO, or YOLO with images, instead"),
    (_list_of("data_row"), "it is of Labelbox; convert it to COCO with its Python package"),
    (_list_of("name", "labels"), "it is of BDD100K or Scalabel; convert it with bdd100k.label.to_coco"),
    (_keys("_via_img_metadata"), "it is a project of VIA; export its annotations in COCO's format"),
    (_of_via, "it is of VIA; export its annotations in COCO's format"),
    (_keys("item", "annotations"), "it is of V7 Darwin; export COCO instead"),
    (_keys("items", "categories"), "it is of Datumaro; convert it with datum convert -f coco_instances"),
)
_SUFFIXES = {
    ".csv": "a table; convert it to COCO JSON, or export that",
    ".xml": "neither VOC nor CVAT for images; export one of these, or COCO",
    ".ndjson": "lines of JSON, as Labelbox and Ultralytics have them; export COCO instead",
    ".tfrecord": "TensorFlow's; export COCO instead",
    ".zip": "an archive; unpack it and name the folder",
}


def of_json(content: Any) -> str:
    """Say whose labels a parsed JSON is, and how to go on; empty if it is of no tool that is known here."""
    return next((words for fits, words in _JSON if fits(content)), "")


def described(path: Path) -> str:
    """Say whose labels a file, or the first ones of a folder, are, and how to go on; else empty."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())[:20]
    for file in files:
        suffix = file.suffix.lower()
        if suffix in _SUFFIXES:
            return f"{file.name} is {_SUFFIXES[suffix]}"
        if suffix == ".json" and (words := of_json(load_small(file))):
            return f"{file.name}: {words}"
    return ""


def load_small(file: Path) -> Any:
    """The content of a JSON of a single image; None if it is none."""
    try:
        return parse_json(file.read_bytes().decode("utf-8-sig")) if file.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return None
