import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch import nn

from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.recipes.schema import PretrainOptim
from boxless.tasks.pretrain import make_pretrain_optimizer

CONFIG = BarlowTwinsConfig(hidden=16, output=6, redundancy_weight=0.3)


def test_loss_is_the_papers() -> None:
    method, pair = built(CONFIG).eval(), whole_views(5, 48, 48)
    z = []
    with torch.no_grad():
        for view in pair:
            h = torch.cat([pooled_alone(method.encoder, image) for image in view.image])
            rows = method.projector(h).double()
            z.append((rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt())
    total = 0.0
    for i in range(6):
        for j in range(6):
            c = sum(float(z[0][b, i] * z[1][b, j]) for b in range(5)) / 5  # eq. 2
            total += (1 - c) ** 2 if i == j else 0.3 * c**2  # eq. 1
    assert run(method, pair).loss.item() == pytest.approx(total, rel=1e-3)


def test_projector_is_the_codes() -> None:
    projector = built(CONFIG).projector
    assert [type(layer) for layer in projector] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert all(layer.bias is None for layer in projector if isinstance(layer, nn.Linear))


def test_biases_and_norms_may_learn_at_a_rate_of_their_own() -> None:
    method = built(CONFIG)
    for name in ("lars", "sgd", "adamw"):
        groups = make_pretrain_optimizer(method, PretrainOptim(name=name, bias_lr_scale=0.024)).param_groups
        scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        assert {scales[id(p)] for p in method.parameters() if p.ndim > 1} == {1.0}
        assert {scales[id(p)] for p in method.parameters() if p.ndim <= 1} == {0.024}
