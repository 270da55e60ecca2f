import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from boxless.data.classification import ClassifiedData, ExampleDataset, object_window, read_classified
from boxless.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([255 * x // width, 255 * y // height, x * 0 + 128], 2).astype(np.uint8)).save(path)
    return path


@given(
    st.tuples(st.floats(0, 90), st.floats(0, 50), st.floats(1, 100), st.floats(1, 60)),
)
def test_the_window_of_an_object(box: tuple[float, float, float, float]) -> None:
    x1, y1, w, h = box
    x2, y2 = min(x1 + w, 100.0), min(y1 + h, 60.0)
    left, top, right, bottom = object_window((x1, y1, x2, y2), 100, 60)
    side = 1.1 * max(x2 - x1, y2 - y1)
    assert right - left == pytest.approx(side) and bottom - top == pytest.approx(side)
    assert left <= x1 + 1e-6 and top <= y1 + 1e-6 and right >= x2 - 1e-6 and bottom >= y2 - 1e-6
    if side <= 60:
        assert left >= 0 and top >= 0 and right <= 100 + 1e-6 and bottom <= 60 + 1e-6
    else:
        assert (top + bottom) / 2 == pytest.approx((y1 + y2) / 2)


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/b/1.png", "train/a/2.png", "train/a/deep/3.png", "val/b/4.png"):
        draw(tmp_path / name)
    data = read_classified(str(tmp_path / "train"), "train", objects=True)
    assert data.classes == ("a", "b") and data.labels.tolist() == [0, 0, 1]
    assert [Path(path).name for path in data.paths] == ["2.png", "3.png", "1.png"]
    val = read_classified(str(tmp_path / "val"), "val", True, data.classes)
    assert val.classes == data.classes and val.present.tolist() == [[0, 1]]
    with pytest.raises(UserError, match="class folder 'a' is not among the classes learned: b"):
        read_classified(str(tmp_path / "train"), "val", True, ["b"])
    with pytest.raises(UserError, match=r"1\.png and 0 more images lie in no class folder"):
        read_classified(str(tmp_path / "train" / "b"), "train", True)


def labels(tmp_path: Path) -> Path:
    draw(tmp_path / "x.png")
    draw(tmp_path / "y.png")
    boxes = [([2, 3, 10, 4], 0, 7, 1), ([20, 10, 8, 8], 0, 9, 1), ([0, 0, 40, 30], 1, 7, 2)]
    document = {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": 40, "height": 30}
            for number, name in ((1, "x"), (2, "y"))
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": image, "bbox": box, "category_id": category, "iscrowd": crowd, "area": 9}
            for n, (box, crowd, category, image) in enumerate(boxes, 1)
        ],
    }
    for entry in document["annotations"]:
        if entry["iscrowd"]:
            entry["segmentation"] = {"size": [30, 40], "counts": [0, 1200]}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document))
    return path


def test_objects_and_images_of_detection_labels(tmp_path: Path) -> None:
    path = str(labels(tmp_path))
    objects = read_classified(path, "train", objects=True)
    assert objects.labels.tolist() == [0, 1] and [Path(each).name for each in objects.paths] == ["x.png", "x.png"]
    assert objects.window(0, 40, 30) == pytest.approx((1.5, 0, 12.5, 11))  # 11 px square, moved down into the image
    images = read_classified(path, "train", objects=False)
    assert images.present.tolist() == [[1, 1], [-1, 0]] and images.window(0, 40, 30) == (0, 0, 40, 30)


def test_an_image_is_read_once_for_all_its_objects_and_broken_ones_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"no image")
    paths = (*[str(tmp_path / "x.png")] * 2, str(tmp_path / "y.png"))
    boxes = np.array([[0, 0, 4, 30], [10, 10, 20, 20], [0, 0, 5, 5]], np.float32)
    data = ClassifiedData("here", ("a", "b"), paths, boxes, np.array([[1, 0], [0, 1], [1, 0]], np.int8))
    dataset = ExampleDataset(data, 33)
    good, bad = dataset[0], dataset[1]
    assert len(dataset) == 2 and good.rows.tolist() == [0, 1] and good.views.shape == (2, 3, 33, 33)
    assert bad.skipped == (str(tmp_path / "y.png"), "not an image in a known format")
    assert len(bad.views) == len(bad.rows) == 0
    # The first window reaches a pixel and a half beyond the top: the first row goes on, 33 source px at 33 px.
    source = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))).permute(2, 0, 1)
    assert torch.equal(good.views[0][:, 2:-1], source[:, :, :33])
    assert torch.equal(good.views[0][:, :2], source[:, :1, :33].expand(-1, 2, -1))


@pytest.mark.parametrize(("width", "height", "fits"), [(20, 15, False), (400, 300, False), (41, 29, True)])
def test_objects_of_an_image_of_another_size_are_left_out(tmp_path: Path, width: int, height: int, fits: bool) -> None:
    path = str(labels(tmp_path))
    draw(tmp_path / "x.png", width, height)
    objects = read_classified(path, "train", objects=True)
    reason = f"is {width} x {height} px, its labels are for 40 x 30"
    for data in (objects, objects.subset(np.array([1]))):
        found = ExampleDataset(data, 16)[0]
        assert found.skipped == (None if fits else (str(tmp_path / "x.png"), reason))
        assert len(found.views) == len(found.rows) == (len(data) if fits else 0)
    assert ExampleDataset(read_classified(path, "train", objects=False), 16)[0].skipped is None  # has no boxes


@pytest.mark.parametrize(("width", "height"), [(512, 320), (300, 480)])
def test_the_centre_of_an_image_is_cut_as_in_the_usual_evaluation(tmp_path: Path, width: int, height: int) -> None:
    path = draw(tmp_path / "a" / "x.png", width, height)
    data = ClassifiedData("here", ("a",), (str(path),), "centre", np.ones((1, 1), np.int8))
    found = ExampleDataset(data, 112)[0].views[0].int()
    source = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    usual = center_crop(resize(source, [128], InterpolationMode.BILINEAR, antialias=True), [112, 112])
    assert (found - usual.int()).abs().max() <= 3  # a quarter of a pixel of this slope


def test_the_middle_of_a_squashed_image(tmp_path: Path) -> None:
    path = draw(tmp_path / "a" / "x.png", 300, 480)
    data = ClassifiedData("here", ("a",), (str(path),), "squashed centre", np.ones((1, 1), np.int8))
    found = ExampleDataset(data, 112)[0].views[0].int()
    source = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    usual = center_crop(resize(source, [257, 257], InterpolationMode.BILINEAR, antialias=True), [224, 224])
    usual = resize(usual, [112, 112], InterpolationMode.BILINEAR, antialias=True)
    assert (found - usual.int()).abs().max() <= 3


def test_random_crops_stay_within_what_an_example_shows(tmp_path: Path) -> None:
    path = str(draw(tmp_path / "x.png", 400, 300))
    boxes = np.array([[100, 80, 140, 180], [0, 0, 20, 20]], np.float32)
    both = np.ones((2, 1), np.int8)
    for windows in ("centre", boxes):
        data = ClassifiedData("here", ("a",), (path, path), windows, both)
        areas = []
        for seed in range(200):
            x1, y1, x2, y2 = data.crop(0, 400, 300, np.random.default_rng(seed))
            left, top, right, bottom = (0, 0, 400, 300) if isinstance(windows, str) else data.window(0, 400, 300)
            assert left <= x1 < x2 <= right + 1 and top <= y1 < y2 <= bottom + 1
            areas.append((x2 - x1) * (y2 - y1) / (right - left) / (bottom - top))
        assert min(areas) == pytest.approx(0.08, abs=0.05) and max(areas) == pytest.approx(1, abs=0.1)
        first, again, other = (ExampleDataset(data, 16, crops=seed)[0].views for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
    slopes = [  # redness grows to the right, unless the view is mirrored
        bool(torch.diff(ExampleDataset(data, 16, crops=seed)[0].views[0, 0].float().mean(0)).sum() > 0)
        for seed in range(60)
    ]
    assert 18 <= sum(slopes) <= 42
