import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from boxless.errors import UserError
from boxless.evaluation import probes


def clusters(classes: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (classes * each, 16) around a centre per class, class after class, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    return np.eye(16)[labels] + spread * random.normal(size=(len(labels), 16)), labels


def slow_knn(train: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, temperature: float) -> int:
    similar = [float(x @ query / math.sqrt(x @ x) / math.sqrt(query @ query)) for x in train]
    votes: dict[int, float] = {}
    for row in sorted(range(len(train)), key=lambda row: -similar[row])[:k]:
        votes[int(labels[row])] = votes.get(int(labels[row]), 0) + math.exp(similar[row] / temperature)
    return max(votes, key=votes.__getitem__)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (200, 0.07), (20, 1.0)])
def test_nearest_neighbours_vote_as_in_a_slow_loop(k: int, temperature: float) -> None:
    points, labels = clusters(4, 15, spread=0.8)
    queries, _ = clusters(4, 10, spread=0.8, seed=1)
    found = probes.knn_predict(*map(torch.from_numpy, (points, labels, queries)), 4, k, temperature)
    assert found.tolist() == [slow_knn(points, labels, query, k, temperature) for query in queries]


@pytest.mark.parametrize("preset", ["moco", "barlow"])
def test_a_linear_classifier_separates_what_is_separable(preset: str) -> None:
    points, labels = clusters(5, 40, spread=0.1)
    data = torch.from_numpy(points).float(), torch.from_numpy(labels)
    queries, truth = clusters(5, 20, spread=0.1, seed=1)
    found = probes.linear_predict(*data, torch.from_numpy(queries).float(), 5, probes.LINEAR[preset], seed=0)
    assert (found == truth).all()


def test_the_sweep_makes_scale_irrelevant_and_a_divergence_is_named() -> None:
    points, labels = clusters(3, 30, spread=0.2)
    rates = []
    for scale in (0.02, 1.0, 50.0):
        data = torch.from_numpy(scale * points).float(), torch.from_numpy(labels)
        preset = probes.swept(*data, 3, seed=0)
        assert (probes.linear_predict(*data, data[0], 3, preset, 0) == labels).mean() > 0.95
        rates.append(preset.lr)
    assert rates[0] > rates[1] >= rates[2]
    with pytest.raises(UserError, match="not finite at a learning rate of 30"):
        huge = torch.from_numpy(1e20 * points).float()
        probes.linear_predict(huge, data[1], huge, 3, probes.LINEAR["moco"], 0)


def test_learning_rates_of_the_papers() -> None:
    assert [probes.LINEAR["moco"].learning_rate(e) for e in (0, 59, 60, 79, 80)] == pytest.approx([30, 30, 3, 3, 0.3])
    assert [probes.LINEAR["vicreg"].learning_rate(e) for e in (0, 50)] == pytest.approx([0.02, 0.01])


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
    found = probes.interpolated_ap(scores / 7, present, points)
    assert found == pytest.approx(slow_ap(list(scores / 7), list(present), points), abs=1e-12)


def test_average_precision_of_a_known_ranking() -> None:
    scores, present = np.arange(4, 0, -1) / 4, np.array([True, False, True, False])
    assert probes.interpolated_ap(scores, present) == pytest.approx((1 + 2 / 3) / 2)
    assert probes.interpolated_ap(scores, present, 11) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert math.isnan(probes.interpolated_ap(scores, np.zeros(4, bool)))


def test_images_that_only_hide_a_class_do_not_count_for_it() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    present = np.array([[-1, 1], [1, 0], [0, 1]], np.int8)
    assert probes.class_aps(scores, present).tolist() == pytest.approx([1, (1 + 2 / 3) / 2])


def test_svms_choose_their_cost_as_scikit_learns_cross_validation() -> None:
    points, labels = clusters(3, 14, spread=0.7)
    queries, _ = clusters(3, 5, spread=0.7, seed=1)
    present = np.eye(3, dtype=np.int8)[labels]
    found = probes.svm_scores(points, present, queries, seed=0)
    unit, asked = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5) for x in (points, queries))
    for number in range(3):
        marks = np.where(labels == number, 1, -1)
        svms = [
            LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, dual=True, random_state=0)
            for cost in probes.GRID
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores = [cross_val_score(svm, unit, marks, cv=3, scoring="average_precision").mean() for svm in svms]
            chosen = svms[int(np.argmax(scores))].fit(unit, marks)
        np.testing.assert_allclose(found[:, number], chosen.decision_function(asked), rtol=1e-6)
    assert len(probes.GRID) == 19


def test_a_class_that_training_never_shows_has_no_score() -> None:
    points, labels = clusters(2, 6, spread=0.1)
    present = np.eye(3, dtype=np.int8)[labels]
    scores = probes.svm_scores(points, present, points, seed=0)
    assert np.isnan(scores[:, 2]).all() and np.isfinite(scores[:, :2]).all()
    assert probes.mean_known(probes.class_aps(scores, present)) == pytest.approx(1)


def test_low_shot_draws_are_repeatable_and_more_images_help() -> None:
    points, labels = clusters(4, 30, spread=0.6)
    queries, asked = clusters(4, 30, spread=0.6, seed=1)
    marks, truth = np.eye(4, dtype=np.int8)[labels], np.eye(4, dtype=np.int8)[asked]
    found = probes.low_shot(points, marks, queries, truth, seed=3)
    assert list(found) == [1, 2, 4, 8, 16] and all(values.shape == (5,) for values in found.values())
    assert found[1].mean() < found[4].mean() < found[16].mean() and len(set(found[1])) > 1
    again = probes.low_shot(points, marks, queries, truth, seed=3)
    assert all((found[k] == again[k]).all() for k in found)
    assert not (found[1] == probes.low_shot(points, marks, queries, truth, seed=4)[1]).all()


def test_few_shot_episodes() -> None:
    random = np.random.default_rng(0)
    points, labels = clusters(7, 25, spread=0.1)
    assert (probes.few_shot(points, labels, seed=0, episodes=10) == 1).all()
    noise = random.normal(size=points.shape)
    found = probes.few_shot(noise, labels, seed=0, episodes=60)
    assert (found == probes.few_shot(noise, labels, seed=0, episodes=60)).all()
    assert not (found == probes.few_shot(noise, labels, seed=1, episodes=60)).all()
    assert found.mean() == pytest.approx(0.2, abs=0.03)
    rare = labels.copy()
    rare[(labels > 3) & (np.arange(len(labels)) % 25 < 6)] = 0  # 19 of these classes are left
    with pytest.raises(UserError, match="4 classes have 20 readable examples"):
        probes.few_shot(points, rare, seed=0, episodes=1)


def test_intervals() -> None:
    values = np.random.default_rng(0).uniform(size=600)
    score = probes.mean_score("a", "b", values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(600)
    assert (score.low, score.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-3)
    assert probes.mean_score("a", "b", values[:5]).high - values[:5].mean() == pytest.approx(
        2.776 * values[:5].std(ddof=1) / math.sqrt(5), rel=1e-3
    )
    assert math.isnan(probes.mean_score("a", "b", values[:1]).low)
    share = probes.share_score("a", "b", np.arange(100) < 90)  # Wilson's interval of 90 in 100, from its formula
    z, n, p = 1.959964, 100, 0.9
    centre, half, scale = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n**2), 1 + z * z / n
    assert (share.low, share.high) == pytest.approx(((centre - half) / scale, (centre + half) / scale))
