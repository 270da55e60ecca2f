import pytest
import torch
from torch import nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from boxless.methods.byol import BYOLConfig
from boxless.recipes.schema import PretrainOptim
from boxless.runs.pretraining import make_optimizer


def barlow(**changes: object) -> BarlowTwins:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=8, box_head_width=8))
    method = BarlowTwinsConfig(hidden=16, output=6, **changes).build(trunk)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return method.train()


def views(count: int = 5) -> tuple[View, View]:
    images = torch.randn(2, count, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return View(images[0], identity(count)), View(images[1], identity(count))


def loss(method: BarlowTwins, pair: tuple[View, ...]) -> torch.Tensor:
    nothing = torch.zeros(len(pair[0].image), 1, 4)
    return method(pair, nothing, nothing[..., 0] > 0, torch.Generator()).loss


def test_loss_is_the_papers() -> None:
    method = barlow(redundancy_weight=0.3).eval()
    pair = views()
    z = []
    with torch.no_grad():
        for view in pair:
            h = [method.encoder(image[None])["3"][0].flatten(1).mean(1)[None] for image in view.image]
            rows = torch.cat([method.projector(each) for each in h]).double()
            z.append((rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt())
    total = 0.0
    for i in range(6):
        for j in range(6):
            c = sum(float(z[0][b, i] * z[1][b, j]) for b in range(5)) / 5  # eq. 2
            total += (1 - c) ** 2 if i == j else 0.3 * c**2  # eq. 1
    assert loss(method, pair).item() == pytest.approx(total, rel=1e-3)


def test_order_of_views_and_images_does_not_matter() -> None:
    method = barlow()
    first, second = views()
    order = torch.tensor([2, 4, 0, 3, 1])
    shuffled = View(first.image[order], first.from_source), View(second.image[order], second.from_source)
    expected = loss(method, (first, second)).item()
    assert loss(method, (second, first)).item() == pytest.approx(expected, rel=1e-3)
    assert loss(method, shuffled).item() == pytest.approx(expected, rel=1e-3)


def test_views_and_projector_are_the_codes() -> None:
    looks = [[view.photometric for view in config.views()] for config in (BarlowTwinsConfig(), BYOLConfig())]
    assert looks[0] == looks[1]
    layers = [type(layer) for layer in barlow().projector]
    assert layers == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert all(layer.bias is None for layer in barlow().projector if isinstance(layer, nn.Linear))


def test_biases_and_norms_may_learn_at_a_rate_of_their_own() -> None:
    method = barlow()
    for name in ("lars", "sgd", "adamw"):
        groups = make_optimizer(method, PretrainOptim(name=name, bias_lr_scale=0.024)).param_groups
        scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        assert {scales[id(p)] for p in method.parameters() if p.ndim > 1} == {1.0}
        assert {scales[id(p)] for p in method.parameters() if p.ndim <= 1} == {0.024}
