import math

import pytest
import torch
from small_methods import TRUNK, built, pooled_alone, run, whole_views
from torch import nn

from boxless.detectors.trunk import Trunk
from boxless.methods.simclr import SimCLRConfig

CONFIG = SimCLRConfig(hidden=16, output=8)


def test_loss_is_the_papers() -> None:
    method, pair = built(CONFIG).eval(), whole_views(4, 48, 48)

    def embed(image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(method.projector(pooled_alone(method.encoder, image))[0].double(), dim=0)

    with torch.no_grad():  # Alg. 1: z_{2k-1} and z_{2k} are the views of image k
        z = [embed(view.image[k]) for k in range(4) for view in pair]
    total = 0.0
    for i in range(8):
        j = i + 1 if i % 2 == 0 else i - 1
        rivals = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in range(8) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[j]) / 0.1) / rivals)
    assert run(method, pair).loss.item() == pytest.approx(total / 8, rel=1e-4)


def test_last_norm_scales_and_does_not_shift() -> None:
    method = CONFIG.build(Trunk(TRUNK))
    run(method, whole_views(4, 48, 48)).loss.backward()
    last = method.projector[-1]
    assert last.weight.grad is not None and last.bias.grad is None and not last.bias.any()
