import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch import nn

from boxless.methods.byol import BYOLConfig

CONFIG = BYOLConfig(hidden=16, output=8)


def test_loss_is_the_papers() -> None:
    method, pair = built(CONFIG).eval(), whole_views(3, 64, 64)

    def embed(encoder: nn.Module, heads: list[nn.Module], image: torch.Tensor) -> torch.Tensor:
        h = pooled_alone(encoder, image)
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
    assert run(method, pair).loss.item() == pytest.approx(total, abs=1e-4)


def test_target_keeps_its_own_statistics() -> None:
    method = built(CONFIG)
    before = method.target_encoder.bn1.running_mean.clone()
    run(method, whole_views(3, 64, 64))
    assert not torch.equal(method.target_encoder.bn1.running_mean, before)
    during = method.target_encoder.bn1.running_mean.clone()
    method.after_step(0, 10)
    assert torch.equal(method.target_encoder.bn1.running_mean, during)
