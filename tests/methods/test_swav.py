import dataclasses
import math

import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch import Tensor

from boxless.geometry.view import View
from boxless.methods.swav import SwAV, SwAVConfig

CONFIG = SwAVConfig(size=64, local_size=32, local_crops=2, hidden=16, output=8, prototypes=6)
QUEUED = dataclasses.replace(CONFIG, queue_length=8, queue_start=0.2)


def swav(config: SwAVConfig = CONFIG) -> SwAV:
    """A small SwAV, its prototypes as they start."""
    return built(config, spread=0.0)


def crops(seed: int = 1) -> tuple[View, ...]:
    return whole_views(4, 64, 64, 32, 32, seed=seed)


def embedding(method: SwAV, image: Tensor) -> Tensor:
    y = method.projector(pooled_alone(method.encoder, image))[0].double()
    return y / y.norm()


def sinkhorn_codes(scores: list[list[float]], epsilon: float) -> list[list[float]]:
    """Alg. 1's `sinkhorn`, as loops over numbers: (N, K) scores to (N, K) codes."""
    images, prototypes = len(scores), len(scores[0])
    q = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(3):
        for k in range(prototypes):
            total = sum(row[k] for row in q)
            for row in q:
                row[k] /= total * prototypes
        for row in q:
            total = sum(row)
            row[:] = [value / (total * images) for value in row]
    return [[value * images for value in row] for row in q]


def loss_by_hand(method: SwAV, views: tuple[View, ...], queued: list[Tensor]) -> float:
    """Eqs. 2 to 6; `queued` (rows, output) of each global crop take part in the codes alone."""
    c = method.prototypes.weight.double()
    count = len(views[0].image)
    z = [[embedding(method, view.image[n]) for n in range(count)] for view in views]
    terms = []
    for s in (0, 1):
        rows = [*z[s], *queued[s].double()]
        q = sinkhorn_codes([(c @ row).tolist() for row in rows], 0.05)[:count]
        for t in range(len(views)):
            for n in range(count if t != s else 0):
                logits = (c @ z[t][n] / 0.1).tolist()
                log_total = math.log(sum(map(math.exp, logits)))
                terms.append(-sum(a * (b - log_total) for a, b in zip(q[n], logits, strict=True)))
    return sum(terms) / len(terms)


@torch.no_grad()
def test_loss_is_the_papers() -> None:
    method = swav().eval()
    none = torch.zeros(0, 8)
    assert run(method, crops()).loss.item() == pytest.approx(loss_by_hand(method, crops(), [none, none]), abs=1e-4)


@torch.no_grad()
def test_queue_is_filled_after_its_start_and_counts_once_full() -> None:
    method = swav(QUEUED)
    none = torch.zeros(0, 8)
    empty = [queue.vectors.clone() for queue in method.queues]
    run(method, crops(seed=5))
    method.after_step(0, 10)  # 0.1 of the run is over: before the start
    run(method, crops(seed=5))
    method.after_step(1, 10)
    assert all(torch.equal(queue.vectors, was) for queue, was in zip(method.queues, empty, strict=True))
    kept = []
    for step in (2, 3):
        method.eval()
        assert run(method, crops()).loss.item() == pytest.approx(
            loss_by_hand(method, crops(), [none, none]), abs=1e-4
        ), "not full yet"
        method.train()
        seen = run(method, crops(seed=step))
        kept.append((seen.online, seen.target))
        method.after_step(step, 10)
    for number, queue in enumerate(method.queues):
        torch.testing.assert_close(queue.vectors, torch.cat([pair[number] for pair in kept]))
    method.eval()
    by_hand = loss_by_hand(method, crops(), [queue.vectors for queue in method.queues])
    assert run(method, crops()).loss.item() == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand - loss_by_hand(method, crops(), [none, none])) > 0.01


def test_prototypes_are_held_at_first_and_stay_on_the_sphere() -> None:
    method = swav()
    lengths = method.prototypes.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(6))
    run(method, crops()).loss.backward()
    assert method.prototypes.weight.grad is not None and not method.prototypes.weight.grad.any()
    method.after_step(0, 10)
    run(method, crops()).loss.backward()
    assert method.prototypes.weight.grad.any()
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    method.after_step(1, 10)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))
