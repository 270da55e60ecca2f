import math

import numpy as np
import pytest
import torch

from boxless.training.health import PATIENCE, Health, HealthRecord, measure


def noise(count: int = 256, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_orthonormal_embeddings_have_full_rank_and_spread() -> None:
    eye = torch.eye(16)
    health = measure(eye, eye)
    assert health.rank == pytest.approx(16, rel=1e-4)
    assert health.alignment == pytest.approx(0, abs=1e-6)
    assert health.uniformity == pytest.approx(-4, abs=1e-4)  # all pairs at squared distance 2
    both = torch.cat([eye, -eye])
    assert measure(both, both).spread == pytest.approx(1, abs=1e-5)


def test_measures_are_their_definitions() -> None:
    x, y = noise(20, 6), noise(20, 6, 1)
    a, b = (v.double().numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (x, y))
    shares = np.linalg.svd(b, compute_uv=False)
    shares /= shares.sum()
    pairs = [np.exp(-2 * ((b[i] - b[j]) ** 2).sum()) for i in range(20) for j in range(i)]
    health = measure(x * 3, y)
    assert health.rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert health.spread == pytest.approx(np.sqrt(b.var(0).mean() * 6), rel=1e-4)
    assert health.alignment == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-4)
    assert health.uniformity == pytest.approx(np.log(np.mean(pairs)), rel=1e-4)


def test_same_embeddings_are_flat() -> None:
    same = torch.ones(32, 8)
    health = measure(same, same)
    assert health == Health(
        pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-2), pytest.approx(0), pytest.approx(0, abs=1e-3)
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_embeddings_are_no_collapse(broken: float) -> None:
    x = noise()
    x[3, 3] = broken
    health = measure(x, x)
    assert all(math.isnan(value) for value in vars(health).values())
    record = HealthRecord()
    for step in range(10):
        record.add(step, health)
    assert record.collapsed_at is None


def record(*embeddings: torch.Tensor) -> HealthRecord:
    kept = HealthRecord()
    for number, embedding in enumerate(embeddings):
        kept.add(10 * number, measure(embedding, embedding))
    return kept


def test_noise_is_healthy() -> None:
    kept = record(*(noise(seed=seed) for seed in range(12)))
    assert kept.verdict == "healthy" and kept.collapsed_at is None
    assert kept.report().startswith("pretraining: healthy - ") and len(kept.report().splitlines()) == 3


def test_collapse_is_dated_from_its_first_step() -> None:
    point = torch.ones(256, 32)
    embeddings = [noise(seed=seed) for seed in range(4)] + [point + 1e-3 * noise(seed=seed) for seed in range(PATIENCE)]
    kept = record(*embeddings)
    assert kept.collapsed_at == 40 and kept.verdict == "collapsed at step 40"
    assert "all images get the same embedding" in kept.report()
    assert record(*embeddings[:-1]).collapsed_at is None  # not yet for good
    assert record(*embeddings, noise()).collapsed_at is None  # a jolt that it got over
    assert record(*[point] * PATIENCE).collapsed_at == 0


def test_a_line_is_a_collapse_too() -> None:
    line = torch.ones(256, 32) * torch.tensor([1.0, -1.0]).repeat(128)[:, None]  # spread is 1, rank is 1
    assert record(*[line] * PATIENCE).verdict == "collapsed at step 0"


def test_shrinking_is_called_collapsing() -> None:
    assert record(noise(), *[1 + 0.1 * noise(seed=seed) for seed in range(PATIENCE)]).verdict == "collapsing"


def test_few_directions_are_said() -> None:
    few = noise()[:, :5] @ torch.eye(5, 32)  # spread over a sphere of five dimensions of 32
    kept = record(noise(), *[few] * PATIENCE)
    assert kept.verdict == "healthy" and "few directions" in kept.report()
    assert "few directions" not in record(*[few] * PATIENCE).report()  # it never had more
    fewer = noise()[:, :3] @ torch.eye(3, 32)
    assert record(noise(), *[fewer] * PATIENCE).verdict == "collapsing"


def test_a_rank_that_began_high_may_fall_to_what_is_enough() -> None:
    high = noise(count=256, width=256)
    assert record(high).values[0].rank > 94
    for directions, verdict in ((8, "healthy"), (4, "collapsing")):
        few = noise()[:, :directions] @ torch.eye(directions, 32)
        kept = record(high, *[few] * PATIENCE)
        assert kept.verdict == verdict and kept.values[-1].rank < 0.15 * kept.values[0].rank


def test_no_measure_no_verdict() -> None:
    assert HealthRecord().verdict == "unknown" and "no measure" in HealthRecord().report()


@pytest.mark.parametrize(("spread", "verdict"), [(0.21, "collapsing"), (0.42, "healthy")])
def test_what_shrank_more_than_any_whole_run_is_collapsing(spread: float, verdict: str) -> None:
    """BYOL without its predictor came from 0.80 to 0.21; whole, PixPro's from 0.64 to 0.33, or 0.52 of its first."""
    kept = HealthRecord()
    for step, value in enumerate([0.8, *[spread] * PATIENCE]):
        kept.add(step, Health(value, 10.0, 0.5, -2.0))
    assert kept.verdict == verdict
