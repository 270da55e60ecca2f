import math

import numpy as np
import pytest
import torch

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
    epochs = []
    found = probes.linear_predict(
        lambda epoch: epochs.append(epoch) or data[0],
        data[1],
        torch.from_numpy(queries).float(),
        5,
        probes.LINEAR[preset],
        seed=0,
    )
    assert epochs == list(range(100))
    assert (found == truth).all()


def test_the_sweep_makes_scale_irrelevant_and_a_divergence_is_named() -> None:
    points, labels = clusters(3, 30, spread=0.2)
    rates = []
    for scale in (0.02, 1.0, 50.0):
        data = torch.from_numpy(scale * points).float(), torch.from_numpy(labels)
        preset = probes.swept(*data, 3, seed=0)
        assert (
            probes.linear_predict(lambda _, points=data[0]: points, data[1], data[0], 3, preset, 0) == labels
        ).mean() > 0.95
        rates.append(preset.lr)
    assert rates[0] > rates[1] >= rates[2]
    with pytest.raises(UserError, match="not finite at a learning rate of 30"):
        huge = torch.from_numpy(1e20 * points).float()
        probes.linear_predict(lambda _: huge, data[1], huge, 3, probes.LINEAR["moco"], 0)


def test_learning_rates_of_the_papers() -> None:
    assert [probes.LINEAR["moco"].learning_rate(e) for e in (0, 59, 60, 79, 80)] == pytest.approx([30, 30, 3, 3, 0.3])
    assert [probes.LINEAR["vicreg"].learning_rate(e) for e in (0, 50)] == pytest.approx([0.02, 0.01])


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
