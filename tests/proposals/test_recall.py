import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boxless.data.annotations.read import read_labels
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.proposals.recall import labelled_pairs, recall
from boxless.proposals.table import ProposalTable, Row


def overlap(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (areas - w * h)


@st.composite
def some_boxes(draw):
    count = draw(st.integers(0, 5))
    corners = draw(arrays(np.float32, (count, 2), elements=st.integers(0, 100).map(float)))
    sides = draw(arrays(np.float32, (count, 2), elements=st.integers(1, 150).map(float)))
    return np.concatenate([corners, corners + sides], axis=1)


@given(st.lists(st.tuples(some_boxes(), some_boxes()), max_size=4))
def test_agrees_with_brute_force(pairs):
    found = {"all": [], "small": [], "medium": [], "large": []}
    for proposals, objects in pairs:
        for thing in objects.tolist():
            hit = any(overlap(thing, box) >= 0.5 for box in proposals.tolist())
            area = (thing[2] - thing[0]) * (thing[3] - thing[1])
            for name in ("all", "small" if area < 1024 else "medium" if area < 9216 else "large"):
                found[name].append(hit)
    measured = recall(pairs)
    for name, hits in found.items():
        assert measured.objects[name] == len(hits)
        expected = sum(hits) / len(hits) if hits else math.nan
        assert measured.shares[name] == pytest.approx(expected, nan_ok=True)
    assert measured.images == len(pairs)


def test_worked_example():
    proposals = np.array([[0, 0, 10, 10], [50, 50, 150, 150]], np.float32)
    objects = np.array([[0, 0, 10, 5], [0, 0, 10, 4], [60, 50, 160, 150]], np.float32)  # IoU 0.5, 0.4, 9/11
    measured = recall([(proposals, objects)])
    assert measured.shares == pytest.approx({"all": 2 / 3, "small": 1 / 2, "medium": math.nan, "large": 1}, nan_ok=True)
    assert measured.boxes_per_image == 2
    assert "0.667  of 3 objects" in str(measured)


def test_labels_are_matched_by_file_without_crowds(shared_data):
    index = index_images(shared_data / "coco256" / "images")
    labels = read_labels(shared_data / "coco256" / "annotations" / "instances_val.json")
    counts = np.arange(len(index))
    boxes = ProposalTable.of([Row(index.key(i), boxes=np.zeros((i, 4), np.float32)) for i in counts], {})
    pairs = labelled_pairs(boxes, index, labels)
    assert len(pairs) == len(labels) == 128
    keys = index.keys().to_pylist()
    assert [len(p) for p, _ in pairs] == [i for i, key in enumerate(keys) if key.startswith("val/")]
    assert sum(len(objects) for _, objects in pairs) == sum(int((~image.crowd).sum()) for image in labels.images)

    with pytest.raises(UserError, match="labels none of the 2 images"):
        labelled_pairs(boxes, index.subset([0, 1]), labels)
