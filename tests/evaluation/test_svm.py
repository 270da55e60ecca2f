import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from boxless.evaluation import svm


def clusters(classes: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (classes * each, 16) around a centre per class, class after class, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    return np.eye(16)[labels] + spread * random.normal(size=(len(labels), 16)), labels


def slow_ap(scores: list[float], present: list[bool], points: int | None) -> float:
    """From the definition: precision and recall of all that scores at least t, for each t."""
    total, curve = sum(present), []
    for threshold in sorted(set(scores), reverse=True):
        taken = [shown for score, shown in zip(scores, present, strict=True) if score >= threshold]
        curve.append((sum(taken) / total, sum(taken) / len(taken)))

    def best(recall: float) -> float:
        return max((precision for reached, precision in curve if reached >= recall), default=0.0)

    if points is not None:
        return sum(best(k / (points - 1)) for k in range(points)) / points
    area, before = 0.0, 0.0
    for recall, _ in curve:
        area += (recall - before) * best(recall)
        before = recall
    return area


@given(
    arrays(np.int64, 12, elements=st.integers(0, 9)),
    arrays(np.bool_, 12).filter(np.any),
    st.sampled_from([None, 11]),
)
def test_average_precision_is_that_of_a_slow_loop(scores: np.ndarray, present: np.ndarray, points: int | None) -> None:
    found = svm.interpolated_ap(scores / 7, present, points)
    assert found == pytest.approx(slow_ap(list(scores / 7), list(present), points), abs=1e-12)


def test_average_precision_of_a_known_ranking() -> None:
    scores, present = np.arange(4, 0, -1) / 4, np.array([True, False, True, False])
    assert svm.interpolated_ap(scores, present) == pytest.approx((1 + 2 / 3) / 2)
    assert svm.interpolated_ap(scores, present, 11) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert math.isnan(svm.interpolated_ap(scores, np.zeros(4, bool)))


def test_images_that_only_hide_a_class_do_not_count_for_it() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    present = np.array([[-1, 1], [1, 0], [0, 1]], np.int8)
    assert svm.class_aps(scores, present).tolist() == pytest.approx([1, (1 + 2 / 3) / 2])


@pytest.mark.parametrize(("grid", "size"), [("detco", 19), ("fair", 18), ("vissl", 11)])
def test_svms_choose_their_cost_as_scikit_learns_cross_validation(grid: str, size: int) -> None:
    points, labels = clusters(3, 14, spread=0.7)
    queries, _ = clusters(3, 5, spread=0.7, seed=1)
    present = np.eye(3, dtype=np.int8)[labels]
    found = svm.svm_scores(points, present, queries, svm.GRIDS[grid], seed=0)
    unit, asked = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5) for x in (points, queries))
    for number in range(3):
        marks = np.where(labels == number, 1, -1)
        settings = {"class_weight": {1: 2, -1: 1}, "max_iter": 2000, "dual": True, "random_state": 0}
        svms = [LinearSVC(C=cost, **settings) for cost in svm.GRIDS[grid]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores = [cross_val_score(each, unit, marks, cv=3, scoring="average_precision").mean() for each in svms]
            chosen = svms[int(np.argmax(scores))].fit(unit, marks)
        np.testing.assert_allclose(found[:, number], chosen.decision_function(asked), rtol=1e-6)
    assert len(svm.GRIDS[grid]) == size


def test_a_class_that_training_never_shows_has_no_score() -> None:
    points, labels = clusters(2, 6, spread=0.1)
    present = np.eye(3, dtype=np.int8)[labels]
    scores = svm.svm_scores(points, present, points, svm.GRIDS["detco"], seed=0)
    assert np.isnan(scores[:, 2]).all() and np.isfinite(scores[:, :2]).all()
    assert svm.mean_known(svm.class_aps(scores, present)) == pytest.approx(1)


def test_low_shot_draws_are_repeatable_and_more_images_help() -> None:
    points, labels = clusters(4, 40, spread=0.6)
    queries, asked = clusters(4, 30, spread=0.6, seed=1)
    marks, truth = np.eye(4, dtype=np.int8)[labels], np.eye(4, dtype=np.int8)[asked]
    found = svm.low_shot(points, marks, queries, truth, seed=3)
    assert list(found) == [1, 2, 4, 8, 16, 32] and all(values.shape == (5,) for values in found.values())
    assert found[1].mean() < found[4].mean() < found[16].mean() and len(set(found[1])) > 1
    again = svm.low_shot(points, marks, queries, truth, seed=3)
    assert all((found[k] == again[k]).all() for k in found)
    assert not (found[1] == svm.low_shot(points, marks, queries, truth, seed=4)[1]).all()
