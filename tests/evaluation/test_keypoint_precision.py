import math
from pathlib import Path

import numpy as np
import pytest

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, Scores, average_precision

BOX = (20.0, 20, 120, 120)  # 10000 square px: large
COCO = [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
"""Ten times COCO's sigmas (cocodataset.org, keypoints, section 1.2)."""


def truth(*objects: np.ndarray, boxes: list[tuple[float, ...]] | None = None, classes: int = 1) -> LabelledData:
    count = len(objects[0])
    image = LabelledImage(
        Path("a.jpg"),
        1,
        200,
        200,
        np.array(boxes or [BOX] * len(objects), np.float32),
        np.arange(len(objects)) % classes,
        np.zeros(len(objects), bool),
        keypoints=np.stack(objects).astype(np.float32),
    )
    names = tuple(f"class {k}" for k in range(classes))
    skeleton = Skeleton(tuple(f"point {k}" for k in range(count)))
    return LabelledData("by hand", names, tuple(range(1, classes + 1)), (image,), skeleton=skeleton)


def points(count: int) -> np.ndarray:
    """(K, 3), all labelled."""
    places = np.random.default_rng(count).uniform(20, 120, (count, 2))
    return np.concatenate([places, np.full((count, 1), 2)], 1).astype(np.float32)


def score(data: LabelledData, places: list[np.ndarray], labels: list[int] | None = None) -> Scores:
    ranked = np.linspace(0.9, 0.1, len(places), dtype=np.float32)
    boxes = np.zeros((len(places), 4), np.float32)  # are not looked at
    stacked = np.stack(places)[..., :2].astype(np.float32)
    labels_of = np.array(labels or [0] * len(places), np.int64)
    return average_precision(data, [Detections(boxes, ranked, labels_of, keypoints=stacked)], "keypoints")


def shift(similarity: float, sigma: float) -> float:
    """How far a keypoint may lie off for a similarity, px: exp(-d^2 / (2 area (2 sigma)^2))."""
    return math.sqrt(-math.log(similarity) * 2 * 1e4 * (2 * sigma) ** 2)


@pytest.mark.parametrize("count", [3, 17])
def test_right_places_score_one_and_far_ones_none(count: int) -> None:
    labelled = points(count)
    data = truth(labelled)
    assert score(data, [labelled]).ap == score(data, [labelled]).ap50 == score(data, [labelled]).ap_large == 1
    assert score(data, [labelled + 500]).ap == 0
    result = score(data, [labelled])
    assert math.isnan(result.ap_small) and math.isnan(result.ap_medium) and result.ar100 == 1


@pytest.mark.parametrize(("count", "place"), [(3, 1), (17, 0), (17, 11)])
def test_similarity_is_cocos(count: int, place: int) -> None:
    """One keypoint alone is labelled; at a similarity of 0.72 five of ten thresholds are passed."""
    labelled = points(count)
    labelled[np.arange(count) != place] = 0
    data = truth(labelled)
    sigma = COCO[place] / 10 if count == 17 else 0.1
    for similarity, ap in ((0.72, 0.5), (0.73, 0.5), (0.74, 0.5), (0.76, 0.6), (0.49, 0.0)):
        found = labelled.copy()
        found[place, 0] += shift(similarity, sigma)
        found[np.arange(count) != place] = 50  # what is not labelled does not count
        assert score(data, [found]).ap == pytest.approx(ap)


def test_similarities_of_keypoints_are_averaged() -> None:
    labelled = points(4)
    found = labelled.copy()
    found[:2, 1] -= shift(0.44, 0.1)  # mean 0.72
    assert score(truth(labelled), [found]).ap == pytest.approx(0.5)


def test_objects_without_keypoints_count_neither_way() -> None:
    labelled, none = points(4), np.zeros((4, 3), np.float32)
    data = truth(labelled, none, boxes=[BOX, (130.0, 130, 190, 190)])
    assert score(data, [np.full((4, 3), 160.0), labelled]).ap == 1  # the surer one lies on the second object
    assert score(data, [np.full((4, 3), 900.0), labelled]).ap == 0.5
    two = truth(labelled, none, classes=2)
    result = score(two, [labelled, labelled], [0, 1])
    assert result.ap == 1 and math.isnan(result.per_class["class 1"])


def test_a_different_number_of_keypoints_is_refused() -> None:
    with pytest.raises(UserError, match="expected 4 keypoints each, as in by hand, found 3"):
        score(truth(points(4)), [points(3)])
    bare = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    with pytest.raises(UserError, match="expected 4 keypoints each, as in by hand, found 0"):
        average_precision(truth(points(4)), [bare], "keypoints")
    boxes = LabelledData("boxes", ("a",), (1,), truth(points(4)).images)
    with pytest.raises(UserError, match="expected keypoints to score against"):
        average_precision(boxes, [bare], "keypoints")
