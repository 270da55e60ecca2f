"""mIoU against scikit-learn and a slow loop."""

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from boxless.evaluation.mean_iou import confusion, mean_iou

NAMES = ("background", "cat", "dog", "never", "cow")


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    known = np.array([0, 1, 2, 4], np.uint8)
    truth, predicted = (random.choice(known, (23, 31), p=(0.5, 0.3, 0.2, 0)) for _ in range(2))
    predicted[:2] = 4  # found, and labelled nowhere
    truth[random.random(truth.shape) < 0.1] = 255
    return truth, predicted


def test_it_is_that_of_sklearn_over_the_whole_set() -> None:
    pairs = [maps(seed) for seed in range(3)]
    counts = sum(confusion(*pair, 5) for pair in pairs)
    assert isinstance(counts, np.ndarray)
    truth, predicted = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    valid = truth != 255
    assert np.array_equal(counts, confusion_matrix(truth[valid], predicted[valid], labels=range(5)))
    scores = mean_iou(counts, NAMES)
    wanted = jaccard_score(truth[valid], predicted[valid], labels=[0, 1, 2, 4], average=None)
    assert [scores.per_class[name] for name in ("background", "cat", "dog", "cow")] == pytest.approx(list(wanted))
    assert math.isnan(scores.per_class["never"]) and scores.per_class["cow"] == 0
    assert scores.mean_iou == pytest.approx(wanted.mean())  # not the mean of each image's
    assert scores.pixel_accuracy == pytest.approx((truth[valid] == predicted[valid]).mean())
    assert list(scores.as_dict()) == ["mIoU", "pixel accuracy"]


def test_it_is_that_of_a_slow_loop() -> None:
    truth, predicted = maps(7)
    scores = mean_iou(confusion(truth, predicted, 5), NAMES)
    for number, name in enumerate(NAMES):
        both = either = 0
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            both += t == number == p
            either += t != 255 and number in (t, p)
        assert scores.per_class[name] == (
            pytest.approx(both / either) if either else pytest.approx(math.nan, nan_ok=True)
        )


def test_limits() -> None:
    truth, _ = maps(1)
    known = np.where(truth == 255, 0, truth).astype(np.uint8)
    perfect = mean_iou(confusion(truth, known, 5), NAMES)
    assert perfect.mean_iou == perfect.pixel_accuracy == 1
    nothing = mean_iou(confusion(np.full_like(truth, 255), known, 5), NAMES)
    assert math.isnan(nothing.mean_iou) and math.isnan(nothing.pixel_accuracy)
