import pytest
import torch
from torch import nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.byol import BYOL, BYOLConfig


def byol() -> BYOL:
    """A small BYOL whose target differs from its online network."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    method = BYOLConfig(hidden=16, output=8).build(trunk)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return method.train()


def views(count: int = 3, height: int = 64, width: int = 64) -> tuple[View, View]:
    images = torch.randn(2, count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return View(images[0], identity(count)), View(images[1], identity(count))


def loss(method: BYOL, pair: tuple[View, ...]) -> torch.Tensor:
    nothing = torch.zeros(len(pair[0].image), 1, 4)
    return method(pair, nothing, nothing[..., 0] > 0, torch.Generator()).loss


def test_loss_is_the_papers() -> None:
    method = byol().eval()
    pair = views()

    def embed(encoder: nn.Module, heads: list[nn.Module], image: torch.Tensor) -> torch.Tensor:
        h = encoder(image[None])["3"][0].double().flatten(1).mean(1).float()[None]
        for head in heads:
            h = head(h)
        return nn.functional.normalize(h[0].double(), dim=0)

    total = 0.0
    with torch.no_grad():
        for first, second in (pair, pair[::-1]):
            for i in range(3):
                q = embed(method.encoder, [method.projector, method.predictor], first.image[i])
                z = embed(method.target_encoder, [method.target_projector], second.image[i])
                total += float((q - z).square().sum()) / 3  # eq. 2: squared distance of unit vectors
    assert loss(method, pair).item() == pytest.approx(total, abs=1e-4)


def test_views_are_interchangeable_and_boxes_unused() -> None:
    method = byol().eval()
    assert loss(method, views()).item() == pytest.approx(loss(method, views()[::-1]).item(), abs=1e-5)


def test_target_keeps_its_own_statistics() -> None:
    method = byol()
    before = method.target_encoder.bn1.running_mean.clone()
    loss(method, views())
    assert not torch.equal(method.target_encoder.bn1.running_mean, before)
    during = method.target_encoder.bn1.running_mean.clone()
    method.after_step(0, 10)
    assert torch.equal(method.target_encoder.bn1.running_mean, during)


def test_views_are_augmented_unequally() -> None:
    first, second = BYOLConfig().views()
    assert (first.size, first.scale) == (second.size, second.scale) == (224, (0.08, 1.0))
    assert (first.photometric.blur, first.photometric.solarize) == (1.0, 0.0)  # table 6
    assert (second.photometric.blur, second.photometric.solarize) == (0.1, 0.2)
    for photometric in (first.photometric, second.photometric):
        shared = (photometric.flip, photometric.jitter, photometric.gray)
        assert shared == (0.5, 0.8, 0.2)
        strengths = (photometric.brightness, photometric.contrast, photometric.saturation, photometric.hue)
        assert strengths == (0.4, 0.4, 0.2, 0.1)
