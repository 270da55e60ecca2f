import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from boxless.recipes.schema import PretrainOptim
from boxless.tasks.pretrain import make_pretrain_optimizer
from boxless.training.optim import (
    Lars,
    ema_momentum,
    ema_update,
    parameter_groups,
    warmup_cosine,
    warmup_multistep,
    warmup_polynomial,
)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()


def run(net: nn.Module, optimizer: Lars, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 2, 4, 4, dtype=torch.double)).square().mean().backward()
        optimizer.step()


def test_lars_follows_the_equations() -> None:
    """Two steps by hand: decay inside the norm, ratio before the momentum, 1-D tensors at the full rate."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.double))
    bias = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.double))
    lr, momentum, decay, trust = 0.5, 0.9, 0.1, 0.001
    optimizer = Lars([weight, bias], lr=lr, momentum=momentum, weight_decay=decay, trust_coefficient=trust)
    expected, expected_bias = [3.0, 4.0], [1.0, 2.0]
    buffer, buffer_bias = [0.0, 0.0], [0.0, 0.0]
    for gradient in ([1.0, -2.0], [0.5, 3.0]):
        weight.grad, bias.grad = torch.tensor([gradient]).double(), torch.tensor(gradient).double()
        optimizer.step()
        decayed = [g + decay * p for g, p in zip(gradient, expected, strict=True)]
        ratio = trust * math.hypot(*expected) / math.hypot(*decayed)
        buffer = [momentum * b + ratio * g for b, g in zip(buffer, decayed, strict=True)]
        buffer_bias = [momentum * b + g for b, g in zip(buffer_bias, gradient, strict=True)]
        expected = [p - lr * b for p, b in zip(expected, buffer, strict=True)]
        expected_bias = [p - lr * b for p, b in zip(expected_bias, buffer_bias, strict=True)]
        assert weight.grad.tolist() == [gradient], "gradients stay as they were"
    assert weight.tolist()[0] == pytest.approx(expected, rel=1e-12)
    assert bias.tolist() == pytest.approx(expected_bias, rel=1e-12)


def test_lars_can_treat_biases_like_weights() -> None:
    values, gradients = torch.tensor([3.0, 4.0]), torch.tensor([0.8, -0.6])
    bias, weight = (nn.Parameter(values.view(shape).clone()) for shape in ((2,), (1, 2)))
    optimizer = Lars([bias, weight], lr=0.5, weight_decay=0.1, adapt_biases=True)
    bias.grad, weight.grad = gradients, gradients.view(1, 2)
    optimizer.step()
    torch.testing.assert_close(bias.data, weight.data[0])
    ratio = 0.001 * 5 / (1 + 0.1 * 5 + 1e-8)  # apex's LARC, as SwAV has it
    torch.testing.assert_close(bias.data, values - 0.5 * ratio * (gradients + 0.1 * values))


def test_biases_decay_where_a_recipe_treats_them_like_weights() -> None:
    net = small_net()
    for adapt, decays in ((False, {1e-6, 0.0}), (True, {1e-6})):
        settings = PretrainOptim(name="lars", weight_decay=1e-6, adapt_biases=adapt)
        assert {group["weight_decay"] for group in make_pretrain_optimizer(net, settings).param_groups} == decays


def test_lars_ratio_is_one_where_a_norm_is_zero() -> None:
    zero_weight, zero_gradient, unused = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    with torch.no_grad():
        zero_gradient.fill_(2.0)
    zero_weight.grad, zero_gradient.grad = torch.ones(2, 2), torch.zeros(2, 2)
    Lars([zero_weight, zero_gradient, unused], lr=0.5).step()
    assert torch.equal(zero_weight, torch.full((2, 2), -0.5))
    assert torch.equal(zero_gradient, torch.full((2, 2), 2.0))
    assert torch.equal(unused, torch.zeros(2, 2))


def test_lars_weight_step_ignores_the_gradients_scale_and_the_bias_step_does_not() -> None:
    moved = []
    for scale in (1.0, 32.0):
        net = small_net()
        before = [p.detach().clone() for p in net.parameters()]
        net(torch.ones(5, 2, 4, 4, dtype=torch.double) * torch.arange(5).view(5, 1, 1, 1)).square().mean().mul(
            scale
        ).backward()
        Lars(net.parameters(), lr=0.1).step()
        moved.append([p.detach() - b for p, b in zip(net.parameters(), before, strict=True)])
    torch.testing.assert_close(moved[0][4], moved[1][4])  # the linear layer's weight
    torch.testing.assert_close(moved[0][5] * 32, moved[1][5])  # its bias


def test_lars_resumes_exactly_and_follows_the_group_rate() -> None:
    net = small_net()
    optimizer = Lars(net.parameters(), lr=0.3, weight_decay=1e-3)
    run(net, optimizer, 3, seed=1)
    copy = small_net()
    copy.load_state_dict(net.state_dict())
    resumed = Lars(copy.parameters(), lr=99.0)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # torch would share the buffers
    for each in (optimizer, resumed):
        each.param_groups[0]["lr"] = 0.05
    run(net, optimizer, 2, seed=2)
    run(copy, resumed, 2, seed=2)
    for p, q in zip(net.parameters(), copy.parameters(), strict=True):
        assert torch.equal(p, q)


def test_lars_returns_what_the_closure_returns() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([weight], lr=0.1)

    def closure() -> float:
        loss = weight.sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert weight.max() < 1.0


def test_parameter_groups_spare_norms_biases_and_frozen_weights() -> None:
    net = small_net()
    net[3].weight.requires_grad_(False)
    decayed, spared = parameter_groups(net, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(net[0].weight)]
    assert [id(p) for p in spared["params"]] == [id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[3].bias)]
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


@pytest.mark.parametrize(
    ("base", "expected"), [(0.99, [0.99, 0.9915, 0.995, 0.9985, 1.0]), (0.996, [0.996, 0.9966, 0.998, 0.9994, 1.0])]
)
def test_ema_momentum_at_the_quarters(base: float, expected: list[float]) -> None:
    assert [ema_momentum(step, 100, base) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected, abs=5e-5)
    assert ema_momentum(150, 100, base) == 1.0


def test_ema_update_moves_the_target_only() -> None:
    online = [nn.Parameter(torch.full((2, 3), 5.0)), nn.Parameter(torch.full((4,), -1.0))]
    target = [nn.Parameter(torch.full((2, 3), 1.0)), nn.Parameter(torch.full((4,), 1.0))]
    ema_update(target, iter(online), 0.75)
    torch.testing.assert_close(target[0], torch.full((2, 3), 2.0))
    torch.testing.assert_close(target[1], torch.full((4,), 0.5))
    assert torch.equal(online[0], torch.full((2, 3), 5.0))
    ema_update(target, online, 1.0)
    torch.testing.assert_close(target[0], torch.full((2, 3), 2.0))
    ema_update(target, online, 0.0)
    assert torch.equal(target[1], online[1])
    with pytest.raises(RuntimeError):
        ema_update(target, online[:1], 0.5)


def test_warmup_cosine_is_socos() -> None:
    """SoCo: peak / 100 * (1 + 99 t / Tw), then a cosine over the remaining steps to 1e-6."""
    peak, total, warmup = 8.0, 1000, 100
    rate = [warmup_cosine(t, total, warmup, peak, start=peak / 100, final=1e-6) for t in range(total + 2)]
    for t in range(warmup):
        assert rate[t] == pytest.approx(peak / 100 * (1 + 99 * t / warmup))
    assert rate[warmup] == peak
    assert rate[550] == pytest.approx((peak + 1e-6) / 2)
    assert rate[total] == rate[total + 1] == pytest.approx(1e-6)
    assert all(a >= b for a, b in zip(rate[warmup:], rate[warmup + 1 :], strict=False))
    assert warmup_cosine(0, 10, 0, peak) == peak
    assert warmup_cosine(10, 10, 10, peak) == peak


def test_warmup_multistep_is_detectron2s() -> None:
    def rate(step: int) -> float:
        return warmup_multistep(step, (60_000, 80_000), 1000, 0.001, 0.1, 0.02)

    assert rate(0) == pytest.approx(2e-5)
    assert rate(500) == pytest.approx(0.02 * 0.5005)
    assert rate(1000) == rate(59_999) == pytest.approx(0.02)
    assert rate(60_000) == rate(79_999) == pytest.approx(0.002)
    assert rate(80_000) == pytest.approx(0.0002)
    assert warmup_multistep(0, (10,), warmup_steps=0, peak=1.0) == 1.0


def test_warmup_polynomial_is_mmsegmentations() -> None:
    def rate(step: int) -> float:
        return warmup_polynomial(step, 20_000, peak=0.01, final=1e-4)

    assert rate(0) == 0.01 and rate(20_000) == rate(20_001) == 1e-4
    assert rate(10_000) == pytest.approx(1e-4 + 0.0099 * 0.5358867312681466)  # 0.5 ** 0.9
    assert rate(18_000) == pytest.approx(1e-4 + 0.0099 * 0.12589254117941673)  # 0.1 ** 0.9
    warm = [warmup_polynomial(step, 100, 10, 0.01, peak=2.0, final=0.0) for step in (0, 5, 10)]
    assert warm == pytest.approx([0.02, 2 * 0.95**0.9 * 0.505, 2 * 0.9**0.9])
