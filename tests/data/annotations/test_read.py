import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bad_annotations import SOUND_BOXES, write_bad_annotations
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boxless.data.annotations.coco import load_dict
from boxless.data.annotations.read import Problem, problem_report, read_labels
from boxless.data.annotations.types import mask_area, rle_runs
from boxless.data.open import index_images
from boxless.errors import UserError


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return write_bad_annotations(tmp_path_factory.mktemp("labels"))


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_broken_entries_are_left_out_and_named(bad, format):
    expected = bad[format]
    data = read_labels(expected.where)
    for entry, message in expected.problems:
        hits = [p for p in data.problems if re.fullmatch(entry, p.entry) and re.match(message, p.message)]
        assert len(hits) == 1, (entry, message, [str(p) for p in data.problems])
    assert len(data.problems) == len(expected.problems)
    assert all(Path(problem.file).exists() or "unlisted" in problem.file for problem in data.problems)
    assert not any("\n" in str(problem) for problem in data.problems)
    good, bare = (next(i for i in data.images if i.path.name == name) for name in ("good.png", "bare.png"))
    assert (good.width, good.height, bare.width, bare.height) == (100, 80, 100, 80)
    assert good.boxes.dtype == np.float32 and good.labels.dtype == np.int64 and good.crowd.dtype == bool
    assert bare.boxes.shape == (0, 4) and bare.labels.shape == bare.crowd.shape == (0,)
    np.testing.assert_allclose(good.boxes, SOUND_BOXES + expected.mended, atol=1e-4)
    assert [data.classes[k] for k in good.labels[:2]] == ["cat", "dog"]
    assert good.crowd[:2].tolist() == [False, format != "yolo"]


def test_masks_of_the_sound_objects(bad):
    coco, yolo = read_labels(bad["coco"].where), read_labels(bad["yolo"].where)
    assert coco.has_masks and yolo.has_masks and not read_labels(bad["voc"].where).has_masks
    assert [mask is not None for mask in coco.images[0].masks] == [False, True, False]
    (good,) = (image for image in yolo.images if image.path.name == "good.png")
    assert good.masks[1] == [[0, 0, 100, 0, 100, 80, 0, 80]] and good.masks[0] is None


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_given_classes_rule_the_indices(bad, format):
    data = read_labels(bad[format].where, classes=["bird", "dog"])
    (good,) = (image for image in data.images if image.path.name == "good.png")
    assert data.classes == ("bird", "dog") and len(set(data.category_ids)) == 2
    assert set(good.labels.tolist()) == {1}
    (problem,) = (p for p in data.problems if "not among the given classes" in p.message)
    assert problem.entry == {"coco": "category 3", "voc": "class cat", "yolo": "class 0 (cat)"}[format]


def test_coco_and_yolo_of_the_same_images_agree(shared_data):
    coco = read_labels(shared_data / "coco256", "val", format="coco")
    yolo = read_labels(shared_data / "coco256" / "data.yaml:val")
    assert coco.classes == yolo.classes and not coco.problems and not yolo.problems
    other = {image.path.name: image for image in yolo.images}
    assert {image.path.name for image in coco.images} == set(other)
    for image in coco.images:
        np.testing.assert_allclose(image.boxes, other[image.path.name].boxes, atol=1)
        np.testing.assert_array_equal(image.labels, other[image.path.name].labels)
        assert (image.width, image.height) == (other[image.path.name].width, other[image.path.name].height)


def test_voc_splits_of_real_data(shared_data):
    root = shared_data / "neu-det"
    train, val = read_labels(root), read_labels(root, "val")
    assert (len(train), len(val)) == (1416, 354) and train.classes == val.classes and len(train.classes) == 6
    assert [Path(p.file).stem for p in train.problems + val.problems] == ["patches_198", "crazing_120", "inclusion_62"]
    assert {p.message.partition(":")[0] for p in train.problems + val.problems} == {"objects labelled twice, left out"}
    named = read_labels(root / "ImageSets" / "Main" / "val.txt")
    suffixed = read_labels(f"{root}:val")
    assert [i.path for i in named.images] == [i.path for i in suffixed.images] == [i.path for i in val.images]
    image = next(i for data in (train, val) for i in data.images if i.image_id == "crazing_63")
    np.testing.assert_array_equal(image.boxes, [[39, 113, 200, 197], [34, 16, 171, 107]])  # from 1-based inclusive


def test_voc_ids_may_have_spaces_in_them(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("img 1", "scan -1", "scan", "plain", "two words"):
        Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / f"{name}.png")
        (tmp_path / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    lines = ["img 1", "scan -1", "scan -1 ", "scan  1", "plain 0", "plain -1", "two words -1", "two words 1", "gone 2"]
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join(lines) + "\n")
    data = read_labels(tmp_path)
    assert [image.path.stem for image in data.images] == ["img 1", "scan -1", "scan", "plain", "two words"]
    (problem,) = data.problems
    assert problem.file.endswith("gone 2.xml")


def test_area_is_that_of_the_official_annotations(shared_data):
    path = shared_data / "coco256" / "annotations" / "instances_val.json"
    official = {a["id"]: a for a in load_dict(path)["annotations"]}
    masks = {i: a for i, a in official.items() if a.get("segmentation")}
    for annotation in list(masks.values())[:300]:
        assert mask_area(annotation["segmentation"]) == pytest.approx(annotation["area"], rel=1e-3, abs=1)


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_compressed_rle_is_decoded_as_the_coco_api_does(height, width, random):
    mask = np.array([[random.random() < 0.4 for _ in range(width)] for _ in range(height)], dtype=np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    runs = rle_runs(rle["counts"])
    assert sum(runs) == height * width
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
    np.testing.assert_array_equal(values, mask)
    assert mask_area(rle) == mask.sum() == coco_mask.area(rle)


@st.composite
def coco_dicts(draw):
    images = [
        {
            "id": number,
            "file_name": f"{k}.jpg",
            "width": draw(st.integers(20, 4000)),
            "height": draw(st.integers(20, 4000)),
        }
        for k, number in enumerate(draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=3, unique=True)))
    ]
    ids = sorted(draw(st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True)))
    categories = [{"id": number, "name": f"class {number}"} for number in ids]
    annotations = []
    for image in images:
        for _ in range(draw(st.integers(0, 4))):
            x, y = draw(st.integers(0, image["width"] - 10)), draw(st.integers(0, image["height"] - 10))
            w, h = draw(st.integers(1, image["width"] - x)), draw(st.integers(1, image["height"] - y))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": draw(st.sampled_from(ids)),
                "bbox": [x + 0.25, y + 0.5, w - 0.5, h - 0.5],
                "area": (w - 0.5) * (h - 0.5),
                "iscrowd": draw(st.integers(0, 1)),
            }
            if draw(st.booleans()):
                polygon = [x + 0.5, y + 0.5, x + w, y + 0.5, x + w, y + h]
                annotation |= {"segmentation": [polygon], "area": (w - 0.5) * (h - 0.5) / 2}
            annotations.append(annotation)
    return {"images": images, "annotations": annotations, "categories": categories}


@given(coco_dicts())
@settings(max_examples=40, deadline=None)
def test_as_coco_gives_back_what_was_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("coco")
    for image in data["images"]:
        (folder / image["file_name"]).touch()
    (folder / "labels.json").write_text(json.dumps(data))
    read = read_labels(folder / "labels.json")
    assert not read.problems
    again = read.as_coco()
    assert [Path(i["file_name"]).name for i in again["images"]] == [i["file_name"] for i in data["images"]]
    for image in again["images"]:
        image["file_name"] = Path(image["file_name"]).name
    assert again["images"] == data["images"] and again["categories"] == data["categories"]
    assert [a | {"area": 0} for a in again["annotations"]] == [a | {"area": 0} for a in data["annotations"]]
    areas = [[a["area"] for a in d["annotations"]] for d in (again, data)]
    np.testing.assert_allclose(*areas)
    shutil.rmtree(folder)


def test_as_coco_numbers_images_whose_ids_are_names(bad):
    data = read_labels(bad["voc"].where)
    assert [image["id"] for image in data.as_coco()["images"]] == list(range(1, len(data) + 1))
    part = data.subset([1])
    assert len(part) == 1 and part.images[0] is data.images[1] and part.classes == data.classes


def test_problem_report_counts_kinds_then_lists():
    problems = [Problem("a.json", f"annotation {n}", f"unknown category id: {n}") for n in range(30)]
    problems.append(Problem("a.json", "image 3", "duplicate image id"))
    lines = problem_report(problems, limit=2).splitlines()
    assert lines[0].startswith("31 problems") and lines[1].split(maxsplit=1) == ["30", "unknown category id"]
    assert lines[3:] == ["a.json: annotation 0: unknown category id: 0", str(problems[1]), "... and 29 more"]


def _small_coco(folder: Path, *names: str) -> None:
    content = {"images": [{"id": 1, "file_name": "1.png", "width": 9, "height": 9}], "annotations": []}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content | {"categories": [{"id": 1, "name": "cat"}]}))


@pytest.mark.parametrize(
    "place",
    [".", "annotations", "images", "train2017", "images/train2017", "annotations/images", "annotations/train2017"],
)
def test_coco_images_are_found_beside_the_file(tmp_path, place):
    _small_coco(tmp_path, "annotations/instances_train2017.json", "annotations/captions_train2017.json")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(tmp_path / place / "1.png")
    for given_images in (None, tmp_path / place):
        (image,) = read_labels(tmp_path, images=given_images).images
        assert image.path.samefile(tmp_path / place / "1.png")


@pytest.mark.parametrize(
    ("files", "train", "val"),
    [
        ("voc07_trainval voc07_test", "voc07_trainval", "voc07_test"),
        ("instances_train2017 instances_val2017 captions_val2017", "instances_train2017", "instances_val2017"),
        ("train trainval valid test", "train", "valid"),
        ("Train-set validation_1", "Train-set", "validation_1"),
        ("training testing", "training", "testing"),
        ("latest train", "train", "no COCO file for 'val or test'"),
        ("interval.v2 test", "no COCO file for 'train or trainval'", "test"),
        ("latest", "latest", "latest"),  # a folder of one split, given twice or beside another
        ("trainval", "trainval", "no COCO file for 'val or test'"),
        ("train a_val b_val", "train", "several files for 'val'"),
        ("train_val test", "its name says training and validation", "its name says training and validation"),
    ],
)
def test_no_split_is_part_of_a_word_and_none_is_both(tmp_path, files, train, val):
    _small_coco(tmp_path, *(f"annotations/{name}.json" for name in files.split()))
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    for role, expected in (("train", train), ("val", val)):
        try:
            found = Path(read_labels(tmp_path, role).origin).stem
        except UserError as error:
            found = str(error)
        assert found == expected if expected in files.split() else expected in found
    if "2017" in files:
        for split in ("val", "val2017"):
            assert read_labels(f"{tmp_path}:{split}").origin.endswith("instances_val2017.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "empty file"),
        ("a.json", '{"images": [],\n  "annotations" 3}', "not valid JSON, line 2, column 17"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", "[1]", "not a COCO dict but a JSON list"),
        ("a.json", '{"annotations": [], "categories": []}', "lacks the key 'images'"),
        ("a.json", '{"images": {}, "annotations": [], "categories": []}', "expected a list under the key 'images'"),
        ("a.json", '{"images": [], "annotations": [1], "categories": []}', "no usable entry under 'categories'"),
        (
            "a.json",
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "no images left of 0",
        ),
        ("a.yaml", "names: [a\n", "not valid YAML"),
        ("a.yaml", "train: images\n", "lacks the key 'names'"),
        ("a.yaml", "names: 3\ntrain: images\n", "'names' must be"),
        ("a.yaml", "names: [a]\nval: images\n", "no split 'train'; it has: val"),
        ("a.yaml", "names: [a]\ntrain: nowhere\n", "no such file or folder: .*nowhere"),
        ("a.yaml", "names: [a]\ntrain: .\n", "no images in split 'train'"),
        ("a.xml", "<annotation/>", "no labels found"),
    ],
)
def test_unusable_files_are_told_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_splits_and_formats_that_are_not_there(tmp_path, shared_data):
    _small_coco(tmp_path / "c", "annotations/a_train.json", "annotations/b_train.json")
    (tmp_path / "empty").mkdir()
    calls = {
        "holds labels as coco and yolo": lambda: read_labels(shared_data / "coco256"),
        "no test9.txt; it has: train, val": lambda: read_labels(f"{shared_data}/neu-det:test9"),
        "no split 'test9'; it has: train, val": lambda: read_labels(f"{shared_data}/coco256/data.yaml:test9"),
        "no COCO file for 'test9'": lambda: read_labels(f"{shared_data}/coco256:test9", format="coco"),
        "is one split": lambda: read_labels(f"{shared_data}/coco256/annotations/instances_val.json:val"),
        "several files for 'train'": lambda: read_labels(tmp_path / "c"),
        "no COCO file for 'val or test'": lambda: read_labels(tmp_path / "c", "val"),
        "no labels found": lambda: read_labels(tmp_path / "empty"),
        "expected the format voc": lambda: read_labels(shared_data / "coco256", format="voc"),
        "no such file or folder": lambda: read_labels(tmp_path / "nowhere:train"),
        "images: no such folder": lambda: read_labels(shared_data / "neu-det", images=tmp_path / "nowhere"),
        "no images left; first: .*missing image file": lambda: read_labels(
            f"{shared_data}/neu-det:val", images=tmp_path / "empty"
        ),
        "voc: expected Annotations.*there is no JPEGImages": lambda: read_labels(_voc_without_images(tmp_path / "voc")),
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def _voc_without_images(root: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    return root


def test_yolo_without_any_label_file(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    (tmp_path / "data.yaml").write_text("names: {0: a}\ntrain: .\n")
    with pytest.raises(UserError, match=r"no label files for split 'train'; expected e.g. .*1\.txt"):
        read_labels(tmp_path)


def _small_yolo(folder: Path, more: str = "") -> None:
    (folder / "images").mkdir()
    Image.new("RGB", (100, 80)).save(folder / "images" / "1.png")
    (folder / "data.yaml").write_text(f"names: [cat, dog]\ntrain: images\n{more}")
    (folder / "labels").mkdir()


@pytest.mark.parametrize("values", [2, 3])
def test_yolo_pose_lines_are_boxes(tmp_path, values):
    _small_yolo(tmp_path, f"kpt_shape: [2, {values}]\n")
    points = "0.9 0.1 0 0" if values == 2 else "0.9 0.1 2 0 0 0"
    lines = [f"1 0.2 0.5 0.2 0.5 {points}", "1 0.5 0.5 0.2 0.2", f"0 0.2 0.5 0.2 0.5 {points} 0.5"]
    (tmp_path / "labels" / "1.txt").write_text("\n".join(lines))
    data = read_labels(tmp_path)
    (image,) = data.images
    np.testing.assert_allclose(image.boxes, [[10, 20, 30, 60]], atol=1e-4)
    assert image.labels.tolist() == [1] and not data.has_masks
    fields = 5 + 2 * values
    assert [(problem.entry, problem.message) for problem in data.problems] == [
        ("line 2", f"wrong number of fields: expected {fields} by kpt_shape, found 5"),
        ("line 3", f"wrong number of fields: expected {fields} by kpt_shape, found {fields + 1}"),
    ]


@pytest.mark.parametrize("shape", ["17", "[17]", "[0, 3]", "[17, 4]", "[17, 3.0]", "[true, 2]"])
def test_a_wrong_kpt_shape_is_told_in_one_line(tmp_path, shape):
    _small_yolo(tmp_path, f"kpt_shape: {shape}\n")
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2")
    with pytest.raises(UserError, match=r"data.yaml: kpt_shape: .*; expected \[number of keypoints, 2 or 3 values"):
        read_labels(tmp_path)


def test_yolo_follows_links_as_the_index_does_and_enters_no_folder_twice(tmp_path):
    _small_yolo(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "second").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "labels" / "link").mkdir()
    (tmp_path / "labels" / "link" / "2.txt").write_text("1 0.5 0.5 0.5 0.5")
    data, index = read_labels(tmp_path), index_images(tmp_path / "images", tmp_path / "cache")
    assert [str(image.path) for image in data.images] == [index.path(row) for row in range(len(index))]
    assert [len(image.boxes) for image in data.images] == [0, 1]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a/0007.png", "a/12.png"], [7, 12]),
        (["a/0007.png", "a/7.png"], ["0007", "7"]),
        (["a/x.png", "b/x.png"], None),
    ],
)
def test_yolo_image_ids_are_different(tmp_path, names, ids):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("names: {0: a}\ntrain: [a, b]\n" if ids is None else "names: [a]\ntrain: a\n")
    data = read_labels(tmp_path)
    assert [image.image_id for image in data.images] == (ids or [(tmp_path / name).as_posix() for name in names])
