import math

import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch import Tensor, nn

from boxless.geometry.view import View
from boxless.methods.dino import DINO, DINOConfig

CONFIG = DINOConfig(size=64, local_size=32, local_crops=2, hidden=16, output=8, prototypes=12)


def dino() -> DINO:
    """A small DINO whose embeddings spread widely and whose centre is not zero."""
    method = built(CONFIG)
    with torch.no_grad():
        for projector in (method.projector, method.target_projector):
            for layer in projector[::2]:
                nn.init.normal_(layer.weight)
        method.center.normal_()
    return method


def crops(seed: int = 1) -> tuple[View, ...]:
    return whole_views(3, 64, 64, 32, 32, seed=seed)


def distribution(
    image: Tensor, encoder: nn.Module, projector: nn.Module, prototypes: nn.Linear, center: Tensor, temperature: float
) -> list[float]:
    """P of eq. 1, of one image alone."""
    y = projector(pooled_alone(encoder, image))[0].double()
    z = y / y.norm()
    logits = [
        float(z @ w / w.norm() - c) / temperature for w, c in zip(prototypes.weight.double(), center, strict=True)
    ]
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def test_loss_is_the_papers() -> None:
    method = dino().eval()
    method.progress.value = 0.15  # half of the warm-up: 0.055
    views = crops()
    student = (method.encoder, method.projector, method.prototypes, torch.zeros(12), 0.1)
    teacher = (method.target_encoder, method.target_projector, method.target_prototypes, method.center, 0.055)
    terms = []
    with torch.no_grad():
        for t in (0, 1):
            for s in range(4):
                for n in range(3 if s != t else 0):
                    p_t, p_s = distribution(views[t].image[n], *teacher), distribution(views[s].image[n], *student)
                    terms.append(-sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)))  # H(a, b) = -a log b
    assert len(terms) == 2 * 3 * 3  # two global crops, each with three others, of three images
    assert run(method, views).loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_center_moves_once_per_step_by_all_batches_and_after_its_use() -> None:
    method = dino()
    before = method.center.clone()
    seen: list[Tensor] = []

    def see(_: nn.Module, arguments: object, output: Tensor) -> None:
        seen.append(nn.functional.normalize(output, dim=1))

    method.target_projector.register_forward_hook(see)
    for seed in (1, 2):
        run(method, crops(seed))
        assert torch.equal(method.center, before)
    cosines = torch.cat(seen) @ nn.functional.normalize(method.target_prototypes.weight, dim=1).T
    assert len(cosines) == 2 * 2 * 3
    method.after_step(0, 10)
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * cosines.mean(0))  # eq. 4
    method.after_step(1, 10)
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * cosines.mean(0))  # nothing new was seen


def test_prototypes_are_held_at_first_and_keep_their_length_later() -> None:
    method = dino()
    run(method, crops()).loss.backward()
    assert method.prototypes.weight.grad is not None and not method.prototypes.weight.grad.any()
    assert all(layer.weight.grad.any() for layer in method.projector[::2])
    method.after_step(0, 10)  # the run's first tenth is over: more than the share of 0.01
    run(method, crops()).loss.backward()
    gradient, weight = method.prototypes.weight.grad, method.prototypes.weight
    assert gradient.any()
    assert (gradient * weight).sum(1).abs().max() < 1e-5 * gradient.norm(), "only directions count"


def test_temperature_of_the_teacher_rises_along_a_line() -> None:
    method = dino()
    seen = []
    for step in range(100):
        if step in (0, 15, 30, 99):
            seen.append(method.target_temperature())
        method.after_step(step, 100)
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])
