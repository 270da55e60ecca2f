"""Losses on one vector per image or box, against their papers' formulas in plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boxless import losses

Rows = list[list[float]]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(11)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cross_entropy(logits: list[float], target: list[float]) -> float:
    log_sum = math.log(sum(math.exp(x) for x in logits))
    return sum(p * (log_sum - x) for p, x in zip(target, logits, strict=True))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def test_byol_formula_and_limits() -> None:
    p, z = normal(6, 5), normal(6, 5)
    expected = mean([2 - 2 * cosine(a, b) for a, b in zip(p.tolist(), z.tolist(), strict=True)])
    assert float(losses.byol_loss(p, z)) == pytest.approx(expected)
    assert float(losses.byol_loss(p, 3 * p)) == pytest.approx(0, abs=1e-12)
    assert float(losses.byol_loss(p, -p)) == pytest.approx(4)
    assert float(losses.byol_loss(torch.eye(4), torch.eye(4).roll(1, 0))) == pytest.approx(2)


def test_info_nce_formula_and_limits() -> None:
    q, k, negatives, t = normal(4, 5), normal(4, 5), normal(7, 5), 0.2
    expected = []
    for query, key in zip(q.tolist(), k.tolist(), strict=True):
        logits = [cosine(query, key) / t, *(cosine(query, n) / t for n in negatives.tolist())]
        expected.append(cross_entropy(logits, [1.0] + [0.0] * 7))
    assert float(losses.info_nce_loss(q, k, negatives, t)) == pytest.approx(mean(expected))
    same = torch.ones(3, 5)
    assert float(losses.info_nce_loss(same, same, torch.ones(1000, 5), t)) == pytest.approx(math.log(1001), rel=1e-5)
    assert float(losses.info_nce_loss(q, k, normal(0, 5), t)) == pytest.approx(0)


def test_nt_xent_formula_and_limits() -> None:
    z1, z2, t = normal(4, 5), normal(4, 5), 0.3
    rows = [*z1.tolist(), *z2.tolist()]
    expected = []
    for i, anchor in enumerate(rows):
        others = [j for j in range(8) if j != i]
        logits = [cosine(anchor, rows[j]) / t for j in others]
        expected.append(cross_entropy(logits, [float(j == (i + 4) % 8) for j in others]))
    assert float(losses.nt_xent_loss(z1, z2, t)) == pytest.approx(mean(expected))
    torch.testing.assert_close(losses.nt_xent_loss(z2, z1, t), losses.nt_xent_loss(z1, z2, t))
    same = torch.ones(16, 5)
    assert float(losses.nt_xent_loss(same, same, t)) == pytest.approx(math.log(31), rel=1e-5)


def standardised(z: Tensor) -> Rows:
    """Columns of z, each with mean 0 and biased variance 1 (up to 1e-5)."""
    columns = []
    for column in z.T.tolist():
        centred = [x - mean(column) for x in column]
        columns.append([x / math.sqrt(mean([c * c for c in centred]) + 1e-5) for x in centred])
    return columns


def test_barlow_twins_formula() -> None:
    z1, z2, weight = normal(6, 4), normal(6, 4), 0.0051
    expected = 0.0
    for i, a in enumerate(standardised(z1)):
        for j, b in enumerate(standardised(z2)):
            c = mean([x * y for x, y in zip(a, b, strict=True)])
            expected += (c - 1) ** 2 if i == j else weight * c**2
    assert float(losses.barlow_twins_loss(z1, z2, weight)) == pytest.approx(expected)
    torch.testing.assert_close(losses.barlow_twins_loss(z2, z1, weight), losses.barlow_twins_loss(z1, z2, weight))


UNCORRELATED = torch.tensor([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=torch.double)


def test_barlow_twins_limits() -> None:
    """Equal views: the diagonal is var / (var + eps), so only the redundancy is left."""
    diagonal = 1 / (1 + 1e-5)
    assert float(losses.barlow_twins_loss(UNCORRELATED, UNCORRELATED, 1.0)) == pytest.approx(3 * (diagonal - 1) ** 2)
    repeated = UNCORRELATED[:, :1].expand(-1, 3)  # one dimension three times: all correlations 1
    assert float(losses.barlow_twins_loss(repeated, repeated, 0.5)) == pytest.approx(0.5 * 6, rel=1e-4)


def test_vicreg_formula() -> None:
    z1, z2 = 0.8 * normal(6, 4), 0.8 * normal(6, 4)
    pairs = zip(z1.flatten().tolist(), z2.flatten().tolist(), strict=True)
    invariance = mean([(a - b) ** 2 for a, b in pairs])
    variance = covariance = 0.0
    for z in (z1, z2):
        columns = [[x - mean(column) for x in column] for column in z.T.tolist()]
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                c = sum(x * y for x, y in zip(a, b, strict=True)) / 5
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(c + 1e-4)) / 4 / 2
                else:
                    covariance += c**2 / 4
    assert variance > 0
    assert float(losses.vicreg_loss(z1, z2, 3, 5, 7)) == pytest.approx(3 * invariance + 5 * variance + 7 * covariance)
    assert float(losses.vicreg_loss(z1, z2)) == pytest.approx(25 * invariance + 25 * variance + covariance)
    torch.testing.assert_close(losses.vicreg_loss(z2, z1), losses.vicreg_loss(z1, z2))


def test_vicreg_limits() -> None:
    assert float(losses.vicreg_loss(torch.zeros(4, 3), torch.zeros(4, 3))) == pytest.approx(24.75)
    assert float(losses.vicreg_loss(UNCORRELATED, UNCORRELATED)) == pytest.approx(0, abs=1e-12)


def test_dino_formula_and_limits() -> None:
    student, teacher = [normal(3, 5) for _ in range(4)], [normal(3, 5) for _ in range(2)]
    center = normal(5)
    expected = []
    for t, logits in enumerate(teacher):
        targets = [softmax([x / 0.3 for x in row]) for row in (logits - center).tolist()]
        for s, crop in enumerate(student):
            if s != t:
                rows = zip((crop / 0.5).tolist(), targets, strict=True)
                expected.append(mean([cross_entropy(row, target) for row, target in rows]))
    assert len(expected) == 6
    assert float(losses.dino_loss(student, teacher, center, 0.5, 0.3)) == pytest.approx(mean(expected))
    flat = [torch.zeros(2, 4096)] * 10
    assert float(losses.dino_loss(flat, flat[:2], torch.zeros(4096), 0.1, 0.04)) == pytest.approx(math.log(4096))


def official_codes(scores: Tensor, epsilon: float) -> Tensor:
    """The SwAV repository's Sinkhorn, three iterations."""
    q = (scores / epsilon).exp().T
    q /= q.sum()
    prototypes, images = q.shape
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * prototypes
        q /= q.sum(0, keepdim=True) * images
    return (q * images).T


def test_swav_formula_limits_and_gradient() -> None:
    scores = [normal(6, 4).tanh().requires_grad_() for _ in range(4)]
    codes = [official_codes(each.detach(), 0.05) for each in scores[:2]]
    expected = []
    for g, code in enumerate(codes):
        for s, crop in enumerate(scores):
            if s != g:
                expected.append((-(code * (crop / 0.1).log_softmax(-1)).sum(-1)).mean())
    reference = torch.stack(expected).mean()
    loss = losses.swav_loss(scores, 0.1, 0.05, 3)
    torch.testing.assert_close(loss, reference)
    for ours, theirs in zip(torch.autograd.grad(loss, scores), torch.autograd.grad(reference, scores), strict=True):
        torch.testing.assert_close(ours, theirs)
    equal = [torch.zeros(6, 3000)] * 3
    assert float(losses.swav_loss(equal, 0.1, 0.05, 3)) == pytest.approx(math.log(3000), rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(images=st.integers(1, 3), online=st.integers(1, 4), target=st.integers(1, 4), seed=st.integers(0, 999))
def test_object_contrastive_formula(images: int, online: int, target: int, seed: int) -> None:
    torch.manual_seed(seed)
    v, w = normal(images, online, 3), normal(images, target, 3)
    match = torch.rand(images, online, target) < 0.5
    expected = []
    for n in range(images):
        pairs = [(i, j) for i in range(online) for j in range(target) if match[n, i, j]]
        cosines = [cosine(v[n, i].tolist(), w[n, j].tolist()) for i, j in pairs]
        expected.append(-2 * sum(cosines) / (len(pairs) + 1e-6))
    assert float(losses.object_contrastive_loss(v, w, match)) == pytest.approx(mean(expected), abs=1e-12)


def test_object_contrastive_limits() -> None:
    boxes = normal(2, 4, 3)
    loss = losses.object_contrastive_loss
    assert float(loss(boxes, boxes, torch.eye(4).expand(2, 4, 4))) == pytest.approx(-2)
    assert float(loss(boxes, -boxes, torch.eye(4).expand(2, 4, 4))) == pytest.approx(2)
    # one valid box, padded to four copies: sixteen positives that all agree
    copies = boxes[:, :1].expand(2, 4, 3)
    assert float(loss(copies, copies, torch.ones(2, 4, 4, dtype=torch.bool))) == pytest.approx(-2)
    # an image without a match counts in the mean
    match = torch.eye(4).repeat(2, 1, 1)
    match[1] = 0
    assert float(loss(boxes, boxes, match)) == pytest.approx(-1)
    # no match, no box
    online = boxes.clone().requires_grad_()
    nothing = loss(online, boxes, torch.zeros(2, 4, 4))
    nothing.backward()
    assert nothing.item() == 0
    assert not online.grad.any()
    assert float(loss(boxes[:, :0], boxes, torch.zeros(2, 0, 4))) == 0
