import json

import numpy as np
import pytest
from PIL import Image

from boxless.data.index import index_images
from boxless.data.labels import read_labels
from boxless.errors import UserError
from boxless.proposals.from_coco import from_coco, take_from_coco


def test_annotations_become_proposals(shared_data):
    json_file = shared_data / "coco256" / "annotations" / "instances_val.json"
    index = index_images(
        shared_data / "coco256" / "images"
    )  # keys are val/000000000139.jpg, file names lack the folder
    table = from_coco(index, json_file)
    packed = table.aligned_to(index)
    assert len(table) == 128 and packed.missing == 128
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
    assert packed.missing == 2 and made.table.fallback.tolist() == [0, 3]


def test_files_that_do_not_fit_are_refused(images, tmp_path):
    for content, complaint in (("{", "not valid JSON"), ("[]", "no COCO file"), ('{"images": []}', "no COCO file")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=complaint):
            from_coco(images, tmp_path / "bad.json")
    with pytest.raises(UserError, match="match none of the images"):
        from_coco(images, written(tmp_path, "x.png"))  # two images end in this name
    with pytest.raises(UserError, match=r"broken entry \(KeyError: 'bbox'\)"):
        from_coco(images, written(tmp_path, "y.png", boxes=[{}]))
    with pytest.raises(UserError, match="No such file"):
        from_coco(images, tmp_path / "absent.json")
