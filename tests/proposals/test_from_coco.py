import json

import numpy as np
import pytest
from PIL import Image

from boxless.data.annotations.read import read_labels
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.proposals.from_coco import from_coco, take_from_coco


def test_annotations_become_proposals(shared_data):
    json_file = shared_data / "coco256" / "annotations" / "instances_val.json"
    index = index_images(
        shared_data / "coco256" / "images"
    )  # keys are val/000000000139.jpg, file names lack the folder
    table = from_coco(index, json_file)
    packed = table.aligned_to(index)
    assert len(table) == 128 and (table.rows_of(index) < 0).sum() == 128
    rows = {index.key(i): i for i in range(len(index))}
    for image in read_labels(json_file).images:
        if (~image.crowd).any():
            boxes = packed.boxes(rows[f"val/{image.path.name}"])
            np.testing.assert_allclose(boxes, image.boxes[~image.crowd], atol=1e-3)


@pytest.fixture
def images(tmp_path):
    for name in ("a/x.png", "b/x.png", "b/y.png", "b/z.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return index_images(tmp_path / "images")


def written(tmp_path, *names, boxes=()):
    file = tmp_path / "boxes.json"
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    file.write_text(json.dumps({"images": entries, "annotations": [{"image_id": 0, **box} for box in boxes]}))
    return file


def test_boxes_are_clipped_and_empty_ones_dropped(images, tmp_path):
    boxes = [
        {"bbox": [-5, 10, 20, 50]},
        {"bbox": [3, 3, 0, 9]},
        {"bbox": [50, 3, 5, 5]},
        {"bbox": [1, 1, 9, 9], "iscrowd": 1},
    ]
    made = take_from_coco(images, tmp_path / "p.parquet", written(tmp_path, "/data/b/x.png", "y.png", boxes=boxes))
    packed = made.table.aligned_to(images)
    assert [packed.boxes(i).tolist() for i in range(4)] == [
        [[0, 0, 40, 30]],
        [[0, 10, 15, 30]],
        [[0, 0, 40, 30]],
        [[0, 0, 40, 30]],
    ]
    assert (made.table.rows_of(images) < 0).sum() == 2 and made.table.fallback.tolist() == [0, 3]


def from_entries(images, tmp_path, names):
    """The boxes that become those of the one image: of the k-th name, 10 x (k + 1) px from (0, 0)."""
    file = tmp_path / "boxes.json"
    entries = [{"id": f"id {k}", "file_name": name} for k, name in enumerate(names)]
    found = [{"image_id": f"id {k}", "bbox": [0, 0, 10 * (k + 1), 10]} for k in range(len(names))]
    file.write_text(json.dumps({"images": entries, "annotations": found}))
    table = from_coco(images, file)
    assert table.keys.to_pylist() == images.keys().to_pylist()  # no image twice
    return [int(box[2]) for box in table.aligned_to(images).boxes(0)]


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (["a/x.png", "b/x.png"], [20]),
        (["b/x.png", "a/x.png"], [10]),
        (["c/a/x.png", "images/b/x.png", "a/x.png"], [20]),
        (["x.png", "x.png"], [10, 20]),
        (["a/x.png", "b/x.png", "b/x.png"], [20, 30]),
        (["a/x.png", "c/x.png"], None),
        (["x.png", "b/x.png"], None),  # either may be meant
    ],
)
def test_an_image_gets_the_boxes_of_all_entries_that_name_it_and_of_no_other(images, tmp_path, names, sides):
    images = index_images(tmp_path / "images" / "b").subset([0])  # b/x.png, of the key x.png
    if sides is None:
        with pytest.raises(UserError, match=r"file names match none of the images, e\.g\. x\.png"):
            from_entries(images, tmp_path, names)
    else:
        assert from_entries(images, tmp_path, names) == sides


def test_files_that_do_not_fit_are_refused(images, tmp_path):
    for content, complaint in (
        ("{", "not valid JSON"),
        ("[]", "not a COCO dict"),
        ('{"images": []}', "not a COCO dict"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=complaint):
            from_coco(images, tmp_path / "bad.json")
    with pytest.raises(UserError, match="match none of the images"):
        from_coco(images, written(tmp_path, "x.png"))  # two images end in this name
    with pytest.raises(UserError, match=r"broken entry \(KeyError: 'bbox'\)"):
        from_coco(images, written(tmp_path, "y.png", boxes=[{}]))
    (tmp_path / "id.json").write_text('{"images": [{"id": [], "file_name": "y.png"}], "annotations": []}')
    with pytest.raises(UserError, match=r"broken entry \(TypeError: "):
        from_coco(images, tmp_path / "id.json")
    with pytest.raises(UserError, match="No such file"):
        from_coco(images, tmp_path / "absent.json")
