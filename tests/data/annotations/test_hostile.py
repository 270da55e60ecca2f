"""Labels with anything in any place of them: read, and then sound, or refused in a line that names the file."""

import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxless.data.annotations.cityscapes import _masks
from boxless.data.annotations.read import read_labels
from boxless.data.annotations.types import OBJECT_LIMIT, rle_runs
from boxless.errors import UserError
from boxless.proposals.from_coco import from_coco

sys.path.append(str(Path(__file__).parents[2] / "stress"))
import fuzz_labels as fuzz
import numpy as np

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(fuzz.NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in _places(value[key], (*path, key)))]


def _changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    content = copy.deepcopy(content)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return content


def _read(write: Any) -> list[str]:
    """Let `write` put labels into a folder and return what to read; what is then said of them, if they are sound."""
    folder = Path(tempfile.mkdtemp(prefix="labels-"))
    try:
        where = write(folder)
        try:
            data = read_labels(where)
        except UserError as error:
            assert str(folder) in str(error)
            return [str(error)]
        fuzz.sound(data, folder)
        return [problem.message for problem in data.problems]
    finally:
        shutil.rmtree(folder)


@FEW
@given(st.sampled_from(_places(fuzz._coco_content())), VALUES)
def test_coco_with_anything_anywhere(place: tuple[Any, ...], value: Any) -> None:
    def write(folder: Path) -> Path:
        fuzz._images(folder, "a.png", "sub/b.png", "sub/c.png")
        (folder / "labels.json").write_text(json.dumps(_changed(fuzz._coco_content(), place, value)))
        return folder / "labels.json"

    assert all(len(line.splitlines()) == 1 for line in _read(write))


@FEW
@given(st.sampled_from(["xmin", "ymax", "name", "width", "filename", "split"]), VALUES)
def test_voc_with_anything_anywhere(tag: str, value: Any) -> None:
    text = "".join(c for c in str(value) if c.isprintable() and c not in "<&").encode(errors="replace").decode()

    def write(folder: Path) -> Path:
        fuzz._images(folder, "JPEGImages/a.png", "JPEGImages/b.png")
        for name in ("Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        size = "<size><width>48</width><height>40</height></size>"
        whole = f"<annotation><filename>a.png</filename>{size}{fuzz._object()}</annotation>"
        start, end = whole.find(f"<{tag}>") + len(tag) + 2, whole.find(f"</{tag}>")
        (folder / "Annotations" / "a.xml").write_text(whole if tag == "split" else whole[:start] + text + whole[end:])
        (folder / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{text if tag == 'split' else ''}\n")
        return folder

    assert all(len(line.splitlines()) == 1 for line in _read(write))


@FEW
@given(st.sampled_from(["path", "train", "names", "field"]), VALUES, st.integers(0, 4))
def test_yolo_with_anything_anywhere(key: str, value: Any, field: int) -> None:
    def write(folder: Path) -> Path:
        fuzz._images(folder, "images/train/a.png")
        (folder / "labels" / "train").mkdir(parents=True)
        fields = ["0", "0.5", "0.5", "0.5", "0.5"]
        content = {"path": ".", "train": "images/train", "names": ["cat"]}
        if key == "field":
            fields[field] = fuzz._printed(value)
        else:
            content = {**content, key: value}
        (folder / "labels" / "train" / "a.txt").write_text(" ".join(fields), errors="replace")
        (folder / "data.yaml").write_text(json.dumps(content))
        return folder / "data.yaml"

    if key in ("path", "train") and os.path.isabs(str(value)):
        return  # a data.yaml may name any folder: its user chose it, and the readers' own tests have such
    assert all(len(line.splitlines()) == 1 for line in _read(write))


@pytest.mark.parametrize("case", [fuzz._coco, fuzz._voc, fuzz._yolo, fuzz._cityscapes, fuzz._tools, fuzz._taken])
def test_some_of_the_fuzzers_inputs(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            case(Random(f"{case.__name__}/{number}"), folder)
        except UserError as error:
            assert str(folder) in str(error)


# What was found


FOUND = {  # by its place in COCO's content: what was there when a reader failed
    "a name that is too long": (("images", 0, "file_name"), "x" * 300 + ".png"),
    "a device": (("images", 0, "file_name"), "/dev/zero"),
    "a folder": (("images", 0, "file_name"), "sub"),
    "a class that is a list": (("categories", 1, "name"), ["cat"]),
    "a billion pixels": (("images", 0, "width"), 9_000_000),
    "run lengths that are no integers": (("annotations", 2, "segmentation", "counts"), [48 * 40 + 0.0]),
    "run lengths of no end": (("annotations", 2, "segmentation", "counts"), "o" * 100_000),
    "a number of 400 digits": (("images", 1, "id"), 10**400),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_in_coco(name: str) -> None:
    place, value = FOUND[name]

    def write(folder: Path) -> Path:
        fuzz._images(folder, "a.png", "sub/b.png", "sub/c.png")
        (folder / "labels.json").write_text(json.dumps(_changed(fuzz._coco_content(), place, value)))
        return folder / "labels.json"

    assert _read(write)  # it is said, and the rest is sound


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("annotations", 0, "bbox", 0), 10**400),
        (("images", 0, "width"), 10**400),
        (("images", 0, "id"), [1]),
        (("annotations", 0, "bbox", 2), float("inf")),
    ],
)
def test_what_was_found_in_proposals_from_coco(place: Any, value: Any, tmp_path: Path) -> None:
    from boxless.data.open import index_images

    fuzz._images(tmp_path, "images/a.png", "images/sub/b.png")
    content = fuzz._coco_content()
    content["images"].pop()
    (tmp_path / "labels.json").write_text(json.dumps(_changed(content, place, value)))
    try:
        table = from_coco(index_images(tmp_path / "images", cache=tmp_path / "cache"), tmp_path / "labels.json")
    except UserError as error:
        assert "labels.json: broken entry" in str(error)
    else:
        assert (table.values <= 48).all()


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_an_image_of_too_many_objects_is_left_out(kind: str, tmp_path: Path) -> None:
    counts = {"a": {"cat": OBJECT_LIMIT + 1, "dog": 1}, "b": {"cat": 1, "dog": OBJECT_LIMIT + 1}}
    names = {image: [name for name, count in of.items() for _ in range(count)] for image, of in counts.items()}
    where = _written(kind, names, tmp_path)
    with pytest.raises(UserError, match=r"no images left.*too many objects, image left out: expected at most 10,0"):
        read_labels(where)
    data = read_labels(where, classes=["cat"])  # what detectors do not get does not count
    assert [(image.path.name, len(image.boxes)) for image in data.images] == [("b.png", 1)]


def _written(kind: str, names: dict[str, list[str]], folder: Path) -> Path:
    """Labels that name objects of images, all with boxes of their own."""
    fuzz._images(folder, *(f"{'JPEGImages' if kind == 'voc' else 'images'}/{image}.png" for image in names))
    if kind == "coco":
        classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        images = [
            {"id": n, "file_name": f"images/{image}.png", "width": 48, "height": 40} for n, image in enumerate(names)
        ]
        found = [
            {"image_id": n, "category_id": 1 + (name == "dog"), "bbox": [1, 2, 3 + k / 1000, 4]}
            for n, of in enumerate(names.values())
            for k, name in enumerate(of)
        ]
        content = {
            "categories": classes,
            "images": images,
            "annotations": [{"id": k, **one} for k, one in enumerate(found)],
        }
        (folder / "labels.json").write_text(json.dumps(content))
        return folder / "labels.json"
    (labels := folder / ("Annotations" if kind == "voc" else "labels")).mkdir()
    for image, of in names.items():
        if kind == "voc":
            objects = "".join(map(fuzz._object, of))
            (labels / f"{image}.xml").write_text(f"<annotation>{objects}</annotation>")
        else:
            lines = [f"{int(name == 'dog')} 0.5 0.5 0.{k:05d}1 0.5" for k, name in enumerate(of)]
            (labels / f"{image}.txt").write_text("\n".join(lines))
    if kind == "voc":
        return folder
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    return folder / "data.yaml"


def test_labels_of_another_size_cost_the_image_and_are_said(tmp_path: Path) -> None:
    from boxless.data.detection import DetectionDataset

    fuzz._images(tmp_path, "a.png")
    content = fuzz._coco_content()
    content |= {"images": [{**content["images"][0], "width": 40, "height": 48}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    sample = DetectionDataset(read_labels(tmp_path / "labels.json"), (40,), 64, training=False, masks=False)[0]
    assert sample.skipped == (str(tmp_path / "a.png"), "is 48 x 40 px, its labels are for 40 x 48")
    assert len(sample.target["boxes"]) == 0


def test_a_map_of_noise_is_taken_apart_at_once() -> None:
    noise = np.random.default_rng(0).integers(24000, 34000, (400, 500)).astype(np.int32)
    masks = _masks(noise)
    assert len(masks) == len(np.unique(noise))
    with pytest.raises(ValueError, match="no run lengths"):
        rle_runs("o" * 100_000)
