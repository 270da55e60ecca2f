import math

import pytest
import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.dino import DINO, DINOConfig

CONFIG = DINOConfig(size=64, local_size=32, local_crops=2, hidden=16, output=8, prototypes=12)


def dino(config: DINOConfig = CONFIG) -> DINO:
    """A small DINO whose teacher differs from its student and whose centre is not zero."""
    torch.manual_seed(0)
    method = config.build(Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        for projector in (method.projector, method.target_projector):
            for layer in projector[::2]:
                nn.init.normal_(layer.weight)
        method.center.normal_()
    return method.train()


def crops(count: int = 3, seed: int = 1) -> tuple[View, ...]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(count, 3, size, size, generator=generator) for size in (64, 64, 32, 32)]
    return tuple(View(image, identity(count)) for image in images)


def loss(method: DINO, views: tuple[View, ...]) -> Tensor:
    nothing = torch.zeros(len(views[0].image), 1, 4)
    return method(views, nothing, nothing[..., 0] > 0, torch.Generator()).loss


def distribution(
    image: Tensor, encoder: nn.Module, projector: nn.Module, prototypes: nn.Linear, center: Tensor, temperature: float
) -> list[float]:
    """P of eq. 1, of one image alone."""
    y = projector(encoder(image[None])["3"].mean((2, 3)))[0].double()
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
    assert loss(method, views).item() == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_global_crops_and_images_are_interchangeable() -> None:
    method = dino().eval()
    first, second, *local = crops()
    expected = loss(method, (first, second, *local)).item()
    assert loss(method, (second, first, *local[::-1])).item() == pytest.approx(expected, abs=1e-5)
    turned = tuple(View(view.image.roll(1, 0), view.from_source) for view in (first, second, *local))
    assert loss(method, turned).item() == pytest.approx(expected, abs=1e-5)


def test_center_moves_once_per_step_by_all_batches_and_after_its_use() -> None:
    method = dino()
    before = method.center.clone()
    seen: list[Tensor] = []

    def see(_: nn.Module, arguments: object, output: Tensor) -> None:
        seen.append(nn.functional.normalize(output, dim=1))

    method.target_projector.register_forward_hook(see)
    for seed in (1, 2):
        loss(method, crops(seed=seed))
        assert torch.equal(method.center, before)
    cosines = torch.cat(seen) @ nn.functional.normalize(method.target_prototypes.weight, dim=1).T
    assert len(cosines) == 2 * 2 * 3
    method.after_step(0, 10)
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * cosines.mean(0))  # eq. 4
    method.after_step(1, 10)
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * cosines.mean(0))  # nothing new was seen


def test_prototypes_are_held_at_first_and_keep_their_length_later() -> None:
    method = dino()
    loss(method, crops()).backward()
    assert method.prototypes.weight.grad is not None and not method.prototypes.weight.grad.any()
    assert all(layer.weight.grad.any() for layer in method.projector[::2])
    method.after_step(0, 10)  # the run's first tenth is over: more than the share of 0.01
    loss(method, crops()).backward()
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


def test_crops_are_the_papers() -> None:
    views = DINOConfig().views()
    assert [view.size for view in views] == [224] * 2 + [96] * 8
    assert [view.scale for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 8
    assert [view.photometric.blur for view in views] == [1.0, 0.1] + [0.5] * 8
    assert [view.photometric.solarize for view in views] == [0.0, 0.2] + [0.0] * 8
    assert [view.size for view in DINOConfig().at_size(112).views()] == [112] * 2 + [48] * 8
