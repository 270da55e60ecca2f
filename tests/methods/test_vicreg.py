import math

import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch import nn

from boxless.methods.vicreg import VICRegConfig

CONFIG = VICRegConfig(hidden=16, output=6, invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)


def test_loss_is_the_papers() -> None:
    method, pair = built(CONFIG).eval(), whole_views(5, 48, 48)
    with torch.no_grad():
        h = [torch.cat([pooled_alone(method.encoder, image) for image in view.image]) for view in pair]
        z = [method.expander(each).double() for each in h]  # (5, 6) each
    n, d = 5, 6
    total = 2.0 * sum(float((z[0][b, j] - z[1][b, j]) ** 2) for b in range(n) for j in range(d)) / (n * d)  # eq. 5
    for each in z:
        centred = [[float(each[b, j] - sum(each[:, j]) / n) for j in range(d)] for b in range(n)]
        covariance = [[sum(row[i] * row[j] for row in centred) / (n - 1) for j in range(d)] for i in range(d)]  # eq. 3
        total += 3.0 / 2 * sum(max(0.0, 1 - math.sqrt(covariance[j][j] + 1e-4)) for j in range(d)) / d  # eq. 1
        total += 5.0 * sum(covariance[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d  # eq. 4
    assert run(method, pair).loss.item() == pytest.approx(total, rel=1e-3)


def test_expander_is_the_codes() -> None:
    expander = built(CONFIG).expander
    assert [type(layer) for layer in expander] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert [layer.bias is not None for layer in expander if isinstance(layer, nn.Linear)] == [True, True, False]
