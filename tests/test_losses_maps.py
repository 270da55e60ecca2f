"""Losses on one vector per cell, against their papers' formulas in plain loops and worked examples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boxless import losses

NAN = float("nan")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ---- Sinkhorn and Self-EMD

COST = torch.tensor([[[0.1, 0.8], [0.9, 0.3]]], dtype=torch.double)
ROWS = torch.tensor([[0.6, 0.4]], dtype=torch.double)
COLUMNS = torch.tensor([[0.5, 0.5]], dtype=torch.double)


def test_sinkhorn_worked_example() -> None:
    plan = losses.sinkhorn(COST, ROWS, COLUMNS, 5.0, 10)
    expected = torch.tensor([[[0.4969, 0.0967], [0.0031, 0.4033]]], dtype=torch.double)
    torch.testing.assert_close(plan, expected, atol=5e-5, rtol=0)
    assert float((plan * (1 - COST)).sum()) == pytest.approx(0.7492, abs=5e-5)
    sharp = losses.sinkhorn(COST, ROWS, COLUMNS, 20.0, 10)  # not converged: rows still near one half
    torch.testing.assert_close(sharp.sum(2), torch.tensor([[0.50002, 0.49998]]).double(), atol=5e-6, rtol=0)


def sinkhorn_by_hand(cost: Tensor, rows: Tensor, columns: Tensor, regularization: float, iterations: int) -> Tensor:
    kernel = (-regularization * cost).exp()
    u = torch.ones_like(columns)
    for _ in range(iterations):
        v = rows / (kernel @ u)
        u = columns / (kernel.T @ v)
    return v.diag() @ kernel @ u.diag()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 5), m=st.integers(1, 5), seed=st.integers(0, 999))
def test_sinkhorn_is_the_plain_iteration_with_exact_columns(n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    cost = 2 * torch.rand(2, n, m).double()
    rows, columns = (torch.rand(2, size).double() + 0.01 for size in (n, m))
    rows, columns = rows / rows.sum(1, keepdim=True), columns / columns.sum(1, keepdim=True)
    plan = losses.sinkhorn(cost, rows, columns, 4.0, 7)
    for image in range(2):
        torch.testing.assert_close(plan[image], sinkhorn_by_hand(cost[image], rows[image], columns[image], 4.0, 7))
    torch.testing.assert_close(plan.sum(1), columns)
    torch.testing.assert_close(losses.sinkhorn(cost, rows, columns, 4.0, 500).sum(2), rows, atol=1e-4, rtol=0)


def test_sinkhorn_survives_what_underflows() -> None:
    plan = losses.sinkhorn(COST.float(), ROWS.float(), COLUMNS.float(), 1000.0, 10)  # exp(-300) is 0 in float32
    torch.testing.assert_close(plan.sum(1), COLUMNS.float())
    empty_cell = losses.sinkhorn(COST, torch.tensor([[1.0, 0.0]]).double(), COLUMNS, 5.0, 10)
    torch.testing.assert_close(empty_cell, torch.tensor([[[0.5, 0.5], [0.0, 0.0]]]).double())


def test_sinkhorn_gradient() -> None:
    free = [t.clone().requires_grad_() for t in (COST, ROWS, COLUMNS)]
    assert torch.autograd.gradcheck(lambda *given: losses.sinkhorn(*given, 5.0, 4), free)


def emd_by_hand(x: Tensor, y: Tensor, x_vector: Tensor, y_vector: Tensor) -> tuple[float, Tensor]:
    """One image's loss and its plan; x, y: (C, cells)."""
    similarity = torch.tensor([[cosine(a, b) for b in y.T] for a in x.T]).double()
    rows = torch.tensor([max(cosine(a, y_vector), 0) + 1e-3 for a in x.T]).double()
    columns = torch.tensor([max(cosine(b, x_vector), 0) + 1e-3 for b in y.T]).double()
    plan = sinkhorn_by_hand(1 - similarity, rows / rows.sum(), columns / columns.sum(), 5.0, 10)
    return float(2 - 2 * (plan * similarity).sum()), plan


def test_emd_formula_and_gradient() -> None:
    """The views may have other sizes (a 112 px view); the plan is a constant in the gradient."""
    x, y, x_vector, y_vector = normal(2, 4, 2, 3).requires_grad_(), normal(2, 4, 2, 2), normal(2, 4), normal(2, 4)
    by_hand = [emd_by_hand(x[n].detach().flatten(1), y[n].flatten(1), x_vector[n], y_vector[n]) for n in range(len(x))]
    loss = losses.emd_loss(x, y, x_vector, y_vector, 5.0, 10)
    assert loss.item() == pytest.approx(mean([value for value, _ in by_hand]))
    pooled = losses.emd_loss(x.flatten(2), y.flatten(2), x_vector, y_vector, 5.0, 10)  # cells given as a list
    torch.testing.assert_close(pooled, loss)

    unit = x.flatten(2) / x.flatten(2).norm(dim=1, keepdim=True)
    unit_y = y.flatten(2) / y.flatten(2).norm(dim=1, keepdim=True)
    plan = torch.stack([plan for _, plan in by_hand])
    surrogate = -2 * torch.einsum("nij,nci,ncj->n", plan, unit, unit_y).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(surrogate, x))


def test_emd_limits() -> None:
    x = torch.ones(2, 4, 3, 3)
    vector = torch.ones(2, 4)
    assert float(losses.emd_loss(x, x, vector, vector, 20.0, 10)) == pytest.approx(0, abs=1e-5)
    assert float(losses.emd_loss(x, -x, -vector, vector, 20.0, 10)) == pytest.approx(4, abs=1e-5)
    # no cell agrees with the other image: the floor makes all weights equal, so the plan is uniform in a flat cost
    x, y = torch.eye(4)[None, :, :2], torch.eye(4)[None, :, 2:]
    against = -torch.ones(1, 4)
    assert float(losses.emd_loss(x, y, against, against, 20.0, 10)) == pytest.approx(2)


# ---- LC-loss


def test_local_contrastive_worked_example() -> None:
    """64 px image, crop 20..64 resized to 64 and flipped: one of four centres survives, at (0.364, 0.364)."""
    similarity = torch.tensor([0.9, 0.2, 0.1, -0.3]).double()
    online = torch.stack([similarity, (1 - similarity**2).sqrt()]).view(1, 2, 2, 2).requires_grad_()
    target = normal(1, 2, 2, 2)
    target[0, :, 0, 1] = torch.tensor([1.0, 0.0])
    points = torch.full((1, 2, 2, 2), NAN, dtype=torch.double)
    points[0, 0, 1] = torch.tensor([1 - 28 / 44, 16 / 44])
    loss = losses.local_contrastive_loss(target, online, points, 0.2)
    assert loss.item() == pytest.approx(1.6768, abs=5e-5)
    loss.backward()
    by_similarity = torch.tensor([1.7719, -0.7344, -0.7910, -0.2465]).double()
    unit, first = online.detach().flatten(2)[0], torch.tensor([[1.0], [0.0]]).double()
    expected = by_similarity * (first - similarity * unit)  # through the cosine of unit vectors
    torch.testing.assert_close(online.grad.flatten(2)[0], expected, atol=1e-4, rtol=0)


def local_contrastive_by_hand(target: Tensor, online: Tensor, points: Tensor, temperature: float) -> float:
    nlls = []
    height, width = online.shape[2:]
    for n in range(len(target)):
        for i in range(target.shape[2]):
            for j in range(target.shape[3]):
                if points[n, i, j].isnan().any():
                    continue
                logits = {
                    (r, c): cosine(target[n, :, i, j], online[n, :, r, c]) / temperature
                    for r in range(height)
                    for c in range(width)
                }
                log_sum = math.log(sum(map(math.exp, logits.values())))
                u = min(max(float(points[n, i, j, 0]) * width - 0.5, 0), width - 1)
                v = min(max(float(points[n, i, j, 1]) * height - 0.5, 0), height - 1)
                nll = 0.0
                for r in (math.floor(v), math.floor(v) + 1):
                    for c in (math.floor(u), math.floor(u) + 1):
                        weight = (1 - abs(v - r)) * (1 - abs(u - c))
                        if weight > 0:
                            nll += weight * (log_sum - logits[r, c])
                nlls.append(nll)
    return mean(nlls)


def test_local_contrastive_formula() -> None:
    """Points pooled over the batch, at the border too; maps of different sizes."""
    target, online = normal(3, 4, 3, 2), normal(3, 4, 2, 4)
    points = torch.rand(3, 3, 2, 2, dtype=torch.double)
    points[0, 0, 0], points[0, 1, 1] = torch.tensor([0.01, 0.99]), torch.tensor([0.0, 0.5])  # outer half cells
    points[0, 2], points[1, 0, 0], points[2] = NAN, NAN, NAN  # the last image has no overlap
    loss = losses.local_contrastive_loss(target, online, points, 0.2)
    assert float(loss) == pytest.approx(local_contrastive_by_hand(target, online, points, 0.2))
    without_last = losses.local_contrastive_loss(target[:2], online[:2], points[:2], 0.2)
    torch.testing.assert_close(loss, without_last)


def test_local_contrastive_limits() -> None:
    online = normal(2, 4, 7, 7).requires_grad_()
    nothing = losses.local_contrastive_loss(normal(2, 4, 7, 7), online, torch.full((2, 7, 7, 2), NAN), 0.2)
    nothing.backward()
    assert nothing.item() == 0
    assert not online.grad.any(), "zero, and not NaN"
    flat = torch.ones(2, 4, 7, 7)
    assert float(losses.local_contrastive_loss(flat, flat, torch.rand(2, 7, 7, 2), 0.2)) == pytest.approx(math.log(49))
    # distinct cells at their own places, sharply: each finds itself
    cells = torch.eye(6).view(1, 6, 2, 3)
    x, y = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2, indexing="xy")
    own = torch.stack([x, y], -1)[None]
    assert float(losses.local_contrastive_loss(cells, cells, own, 0.01)) == pytest.approx(0, abs=1e-4)


def test_local_mse_formula_and_limits() -> None:
    """At cell centres it is BYOL's distance of both cells; between two of them the mean of theirs."""
    target, online = normal(1, 4, 1, 3), normal(1, 4, 2, 2)
    points = torch.tensor([[0.25, 0.75], [0.5, 0.25], [NAN, NAN]], dtype=torch.double).view(1, 1, 3, 2)

    def distance(i: int, row: int, column: int) -> float:
        return 2 - 2 * cosine(target[0, :, 0, i], online[0, :, row, column])

    expected = mean([distance(0, 1, 0), mean([distance(1, 0, 0), distance(1, 0, 1)])])
    assert float(losses.local_mse_loss(target, online, points)) == pytest.approx(expected)
    same = torch.ones(1, 4, 1, 3)
    assert float(losses.local_mse_loss(same, online * 0 + 2, points)) == pytest.approx(0)
    assert float(losses.local_mse_loss(same, online * 0 - 2, points)) == pytest.approx(4)
    assert float(losses.local_mse_loss(target, online, torch.full_like(points, NAN))) == 0


# ---- DenseCL


def test_dense_info_nce_formula_and_limits() -> None:
    query, key, negatives, t = normal(2, 4, 5), normal(2, 4, 3), normal(6, 4), 0.2
    query_features, key_features = normal(2, 7, 5), normal(2, 7, 3)
    expected = []
    for n in range(2):
        for i in range(5):
            alike = [cosine(query_features[n, :, i], key_features[n, :, j]) for j in range(3)]
            partner = alike.index(max(alike))
            positive = cosine(query[n, :, i], key[n, :, partner]) / t
            rivals = [cosine(query[n, :, i], negative) / t for negative in negatives]
            expected.append(math.log(sum(map(math.exp, [positive, *rivals]))) - positive)
    loss = losses.dense_info_nce(query, key, query_features, key_features, negatives, t)
    assert float(loss) == pytest.approx(mean(expected))
    flat = torch.ones(2, 4, 9)
    start = losses.dense_info_nce(flat, flat, flat, flat, torch.ones(500, 4), t)
    assert float(start) == pytest.approx(math.log(501), rel=1e-5)


# ---- PixPro


def pixpro_by_hand(x: Tensor, y: Tensor, at: Tensor, to: Tensor, diagonal: Tensor) -> float:
    totals = []
    cells = [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]
    for n in range(len(x)):
        near = [
            cosine(x[n, :, i, j], y[n, :, k, m])
            for i, j in cells
            for k, m in cells
            if math.dist(at[n, i, j].tolist(), to[n, k, m].tolist()) / float(diagonal[n]) < 0.7
        ]
        totals.append(-2 * sum(near) / (len(near) + 1e-6))
    return mean(totals)


def test_pixpro_formula_and_limits() -> None:
    x, y = normal(3, 4, 2, 3), normal(3, 4, 2, 3)
    at, to = torch.rand(3, 2, 3, 2).double(), torch.rand(3, 2, 3, 2).double()
    to[2] += 5  # no overlap
    diagonal = torch.tensor([0.4, 0.6, 0.5]).double()
    assert float(losses.pixpro_loss(x, y, at, to, diagonal)) == pytest.approx(pixpro_by_hand(x, y, at, to, diagonal))
    torch.testing.assert_close(
        losses.pixpro_loss(x, y, at, to, diagonal), losses.pixpro_loss(x, y, 9 * at, 9 * to, 9 * diagonal)
    )
    flat = torch.ones(3, 4, 2, 3)
    assert float(losses.pixpro_loss(flat, flat, at, at, diagonal)) == pytest.approx(-2)
    online = flat.clone().requires_grad_()
    nothing = losses.pixpro_loss(online, flat, at, at + 5, diagonal)
    nothing.backward()
    assert nothing.item() == 0
    assert not online.grad.any()


def test_pixpro_threshold_is_strict() -> None:
    one = torch.ones(1, 4, 1, 1)
    at, to = torch.zeros(1, 1, 1, 2), torch.tensor([0.75, 0.0]).view(1, 1, 1, 2)
    assert float(losses.pixpro_loss(one, one, at, to, torch.ones(1), threshold=0.75)) == 0
    assert float(losses.pixpro_loss(one, one, at, to, torch.ones(1), threshold=0.76)) == pytest.approx(-2)
