import math

import pytest
import torch
from torch import nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.simclr import SimCLR, SimCLRConfig


def simclr() -> SimCLR:
    torch.manual_seed(0)
    method = SimCLRConfig(hidden=16, output=8).build(Trunk(TrunkConfig("resnet18", fpn_channels=8, box_head_width=8)))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return method.train()


def views(count: int = 4) -> tuple[View, View]:
    images = torch.randn(2, count, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return View(images[0], identity(count)), View(images[1], identity(count))


def loss(method: SimCLR, pair: tuple[View, ...]) -> torch.Tensor:
    nothing = torch.zeros(len(pair[0].image), 1, 4)
    return method(pair, nothing, nothing[..., 0] > 0, torch.Generator()).loss


def test_loss_is_the_papers() -> None:
    method = simclr().eval()
    pair = views()

    def embed(image: torch.Tensor) -> torch.Tensor:
        h = method.encoder(image[None])["3"][0].flatten(1).mean(1)[None]
        return nn.functional.normalize(method.projector(h)[0].double(), dim=0)

    with torch.no_grad():  # Alg. 1: z_{2k-1} and z_{2k} are the views of image k
        z = [embed(view.image[k]) for k in range(4) for view in pair]
    total = 0.0
    for i in range(8):
        j = i + 1 if i % 2 == 0 else i - 1
        rivals = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in range(8) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[j]) / 0.1) / rivals)
    assert loss(method, pair).item() == pytest.approx(total / 8, rel=1e-4)


def test_order_of_views_and_images_does_not_matter() -> None:
    method = simclr()  # in training: both views share their batch statistics
    first, second = views()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = View(first.image[order], first.from_source), View(second.image[order], second.from_source)
    expected = loss(method, (first, second)).item()
    assert loss(method, (second, first)).item() == pytest.approx(expected, rel=1e-4)
    assert loss(method, shuffled).item() == pytest.approx(expected, rel=1e-4)


def test_last_norm_scales_and_does_not_shift() -> None:
    method = simclr()
    loss(method, views()).backward()
    last = method.projector[-1]
    assert last.weight.grad is not None and last.bias.grad is None and not last.bias.any()


def test_views_are_augmented_strongly_and_alike() -> None:
    first, second = SimCLRConfig().views()
    assert first == second and first.scale == (0.08, 1.0)
    look = first.photometric
    assert (look.jitter, look.brightness, look.contrast, look.saturation, look.hue) == (0.8, 0.8, 0.8, 0.8, 0.2)
    assert (look.flip, look.gray, look.blur, look.solarize) == (0.5, 0.2, 0.5, 0.0)
