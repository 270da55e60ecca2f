import math

import pytest
import torch
from torch import nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.byol import BYOLConfig
from boxless.methods.vicreg import VICReg, VICRegConfig


def vicreg(**changes: object) -> VICReg:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=8, box_head_width=8))
    method = VICRegConfig(hidden=16, output=6, **changes).build(trunk)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return method.train()


def views(count: int = 5) -> tuple[View, View]:
    images = torch.randn(2, count, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return View(images[0], identity(count)), View(images[1], identity(count))


def loss(method: VICReg, pair: tuple[View, ...]) -> torch.Tensor:
    nothing = torch.zeros(len(pair[0].image), 1, 4)
    return method(pair, nothing, nothing[..., 0] > 0, torch.Generator()).loss


def embed(method: VICReg, image: torch.Tensor) -> torch.Tensor:
    h = method.encoder(image[None])["3"][0].flatten(1).mean(1)[None]
    return method.expander(h).double()


def test_loss_is_the_papers() -> None:
    method = vicreg(invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0).eval()
    pair = views()
    with torch.no_grad():
        z = [torch.cat([embed(method, image) for image in view.image]) for view in pair]  # (5, 6) each
    n, d = 5, 6
    total = 2.0 * sum(float((z[0][b, j] - z[1][b, j]) ** 2) for b in range(n) for j in range(d)) / (n * d)  # eq. 5
    for each in z:
        centred = [[float(each[b, j] - sum(each[:, j]) / n) for j in range(d)] for b in range(n)]
        covariance = [[sum(row[i] * row[j] for row in centred) / (n - 1) for j in range(d)] for i in range(d)]  # eq. 3
        total += 3.0 / 2 * sum(max(0.0, 1 - math.sqrt(covariance[j][j] + 1e-4)) for j in range(d)) / d  # eq. 1
        total += 5.0 * sum(covariance[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d  # eq. 4
    assert loss(method, pair).item() == pytest.approx(total, rel=1e-3)


def test_order_of_views_and_images_does_not_matter() -> None:
    method = vicreg()
    first, second = views()
    order = torch.tensor([2, 4, 0, 3, 1])
    shuffled = View(first.image[order], first.from_source), View(second.image[order], second.from_source)
    expected = loss(method, (first, second)).item()
    assert loss(method, (second, first)).item() == pytest.approx(expected, rel=1e-3)
    assert loss(method, shuffled).item() == pytest.approx(expected, rel=1e-3)


def test_views_and_expander_are_the_codes() -> None:
    looks = [[view.photometric for view in config.views()] for config in (VICRegConfig(), BYOLConfig())]
    assert looks[0] == looks[1]
    expander = vicreg().expander
    assert [type(layer) for layer in expander] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert [layer.bias is not None for layer in expander if isinstance(layer, nn.Linear)] == [
        True,
        True,
        False,
    ]
