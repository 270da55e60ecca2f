import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boxless.data.annotations.keypoints import Skeleton, from_coco, to_coco
from boxless.data.annotations.read import LabelledData, read_labels
from boxless.data.detection import DetectionDataset, move_keypoints
from boxless.geometry.affine import compose, crop_and_resize, mirror

NAMES = ["nose", "left_eye", "right_eye", "tail"]
WIDTH, HEIGHT = 60, 40
PLACES = [10, 12, 2, 20, 30, 1, 0, 0, 0, 50, 5, 2]  # COCO's: the pixels' numbers; the third is not labelled


def write(folder: Path, *changes: dict[str, object], categories: list[dict[str, object]] | None = None) -> LabelledData:
    """A COCO file with an image whose labelled keypoints are white pixels."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for x, y, seen in np.array(PLACES).reshape(-1, 3):
        pixels[y, x] = 255 if seen else 0
    Image.fromarray(pixels).save(folder / "a.png")
    sound = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 50, 30], "keypoints": PLACES, "num_keypoints": 3}
    person = {"id": 1, "name": "cat", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3], [1, 9], "x"]}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{**sound, "id": number, **change} for number, change in enumerate([{}, *changes], start=1)],
        "categories": [person, {"id": 2, "name": "box"}, *(categories or [])],
    }
    (folder / "labels.json").write_text(json.dumps(document))
    return read_labels(folder / "labels.json")


def test_a_coco_file_is_read_and_written_back(tmp_path: Path) -> None:
    data = write(tmp_path, {"category_id": 2, "keypoints": None}, {"keypoints": [0] * 12})
    assert data.skeleton == Skeleton(tuple(NAMES), ((0, 1), (0, 2))) and not data.problems
    points = data.images[0].keypoints
    assert points is not None and points.dtype == np.float32 and points.shape == (3, 4, 3)
    assert points[0].tolist() == [[10.5, 12.5, 2], [20.5, 30.5, 1], [0, 0, 0], [50.5, 5.5, 2]]
    assert not points[1:].any() and data.has_keypoints
    written = data.as_coco()
    assert [entry["keypoints"] for entry in written["annotations"]] == [PLACES, [0] * 12, [0] * 12]
    assert [entry["num_keypoints"] for entry in written["annotations"]] == [3, 0, 0]
    assert written["categories"][0] == {"id": 1, "name": "cat", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}


def test_broken_keypoints_cost_the_keypoints_and_not_the_box(tmp_path: Path) -> None:
    broken: list[tuple[dict[str, object], str]] = [
        ({"keypoints": PLACES[:-1]}, "expected 12, has 11"),
        ({"keypoints": [*PLACES[:-1], 3]}, "visibility other than 0, 1 or 2"),
        ({"keypoints": ["1", *PLACES[1:]]}, "coordinate is not a number"),
        ({"keypoints": 5}, "expected 12, is int"),
    ]
    others: list[tuple[dict[str, object], str]] = [
        ({"id": 3, "name": "a", "keypoints": ["x", "x"]}, "a name twice"),
        ({"id": 4, "name": "b", "keypoints": ["x"]}, "those of another category"),
        ({"id": 5, "name": "c", "keypoints": "nose"}, "no list of names"),
    ]
    elsewhere = {"category_id": 4, "keypoints": [1, 1, 2]}
    data = write(tmp_path, *(entry for entry, _ in broken), elsewhere, categories=[entry for entry, _ in others])
    for message in (message for _, message in [*broken, *others]):
        assert len([problem for problem in data.problems if message in problem.message]) == 1, message
    assert len(data.problems) == len(broken) + len(others) + 1  # without keypoints they are the same object
    points = data.images[0].keypoints
    assert points is not None and len(points) == 3 and points[0].any() and not points[1:].any()


@pytest.mark.parametrize("shorter", [HEIGHT, 3 * HEIGHT])
def test_keypoints_stay_on_their_pixels_and_sides_change_names(shorter: int, tmp_path: Path) -> None:
    data = write(tmp_path)
    dataset = DetectionDataset(data, (shorter,), 10 * shorter, training=True, masks=False)
    seen = {}
    for epoch in range(8):
        sample = dataset[epoch, 0]
        points = sample.target["keypoints"]
        assert points.shape == (1, 4, 3) and points.dtype == torch.float32
        for x, y, visible in points[0].tolist():
            assert not visible or sample.image[0, int(y), int(x)] > 100
            assert visible or (x, y) == (0, 0)
        seen[bool(sample.from_source[0, 0] < 0)] = points[0, :, 2].tolist()
    assert seen == {False: [2, 1, 0, 2], True: [2, 0, 1, 2]}  # the left eye shows as a right one


points = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 39), st.integers(0, 2)), min_size=4, max_size=4)


@given(points, st.floats(0.3, 3))
def test_a_flip_twice_is_none_and_a_file_holds_them_all(places: list[tuple[int, int, int]], scale: float) -> None:
    skeleton = Skeleton(tuple(NAMES))
    source = torch.from_numpy(from_coco([value if place[2] else 0 for place in places for value in place]))[None]
    size = (round(60 * scale), round(40 * scale))
    flip = mirror(size[0], torch.tensor([True]))
    resize = crop_and_resize(torch.tensor([[0.0, 0, 60, 40]]), *size)
    straight = move_keypoints(resize[0], source, None)
    flipped = move_keypoints(compose(flip, resize)[0], source, skeleton.mirrored)
    torch.testing.assert_close(move_keypoints(flip[0], flipped, skeleton.mirrored), straight, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        straight[0, :, 0].where(straight[0, :, 2] > 0, size[0] / 2),
        size[0] - flipped[0, skeleton.mirrored, 0].where(flipped[0, skeleton.mirrored, 2] > 0, size[0] / 2),
        atol=1e-4,
        rtol=1e-5,
    )
    assert from_coco(to_coco(source[0].numpy())["keypoints"]).tolist() == source[0].tolist()  # type: ignore[arg-type]


def test_mirror_image_of_cocos_person() -> None:
    parts = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = ("nose", *(f"{side}_{part}" for part in parts for side in ("left", "right")))
    # Detectron2's COCO_PERSON_KEYPOINT_FLIP_MAP as indices
    assert Skeleton(names).mirrored == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert Skeleton(("left_x", "leftover")).mirrored == [0, 1]
