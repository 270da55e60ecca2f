import dataclasses
import math

import pytest
import torch
from torch import Tensor

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.contract import MethodOutput
from boxless.methods.swav import SwAV, SwAVConfig

CONFIG = SwAVConfig(size=64, local_size=32, local_crops=2, hidden=16, output=8, prototypes=6)
QUEUED = dataclasses.replace(CONFIG, queue_length=8, queue_start=0.2)


def swav(config: SwAVConfig = CONFIG) -> SwAV:
    torch.manual_seed(0)
    method = config.build(Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)))
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return method.train()


def crops(count: int = 4, seed: int = 1) -> tuple[View, ...]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(count, 3, size, size, generator=generator) for size in (64, 64, 32, 32)]
    return tuple(View(image, identity(count)) for image in images)


def output(method: SwAV, views: tuple[View, ...]) -> MethodOutput:
    nothing = torch.zeros(len(views[0].image), 1, 4)
    return method(views, nothing, nothing[..., 0] > 0, torch.Generator())


def embedding(method: SwAV, image: Tensor) -> Tensor:
    y = method.projector(method.encoder(image[None])["3"].mean((2, 3)))[0].double()
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
    assert output(method, crops()).loss.item() == pytest.approx(loss_by_hand(method, crops(), [none, none]), abs=1e-4)


@torch.no_grad()
def test_queue_is_filled_after_its_start_and_counts_once_full() -> None:
    method = swav(QUEUED)
    none = torch.zeros(0, 8)
    empty = [queue.vectors.clone() for queue in method.queues]
    output(method, crops(seed=5))
    method.after_step(0, 10)  # 0.1 of the run is over: before the start
    output(method, crops(seed=5))
    method.after_step(1, 10)
    assert all(torch.equal(queue.vectors, was) for queue, was in zip(method.queues, empty, strict=True))
    kept = []
    for step in (2, 3):
        method.eval()
        assert output(method, crops()).loss.item() == pytest.approx(
            loss_by_hand(method, crops(), [none, none]), abs=1e-4
        ), "not full yet"
        method.train()
        seen = output(method, crops(seed=step))
        kept.append((seen.online, seen.target))
        method.after_step(step, 10)
    for number, queue in enumerate(method.queues):
        torch.testing.assert_close(queue.vectors, torch.cat([pair[number] for pair in kept]))
    method.eval()
    by_hand = loss_by_hand(method, crops(), [queue.vectors for queue in method.queues])
    assert output(method, crops()).loss.item() == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand - loss_by_hand(method, crops(), [none, none])) > 0.01


def test_images_and_global_crops_are_interchangeable() -> None:
    method = swav().eval()
    first, second, *local = crops()
    expected = output(method, (first, second, *local)).loss.item()
    assert output(method, (second, first, *local[::-1])).loss.item() == pytest.approx(expected, abs=1e-5)
    turned = tuple(View(view.image.roll(1, 0), view.from_source) for view in crops())
    assert output(method, turned).loss.item() == pytest.approx(expected, abs=1e-5)


def test_prototypes_are_held_at_first_and_stay_on_the_sphere() -> None:
    method = swav()
    lengths = method.prototypes.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(6))
    output(method, crops()).loss.backward()
    assert method.prototypes.weight.grad is not None and not method.prototypes.weight.grad.any()
    method.after_step(0, 10)
    output(method, crops()).loss.backward()
    assert method.prototypes.weight.grad.any()
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    method.after_step(1, 10)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


def test_crops_are_the_papers() -> None:
    views = SwAVConfig().views()
    assert [view.size for view in views] == [224] * 2 + [96] * 6
    assert [view.scale for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    look = views[0].photometric
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (look.jitter, look.gray, look.blur, look.solarize) == (0.8, 0.2, 0.5, 0.0)
    assert all(view.photometric == look for view in views)
