import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from boxless.detectors.trunk import Trunk, TrunkConfig, freeze
from boxless.training.precise_bn import estimate_norms
from boxless.training.sync_norms import SynchronizedBatchNorm


class Net(nn.Module):
    """Three kinds of norm in a row, one of which each batch meets twice, and one that none meets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.shared, self.unmet = nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.frozen, self.loose = FrozenBatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.frozen(self.norm(self.first(images)).relu())
        return self.shared(self.loose(self.second(maps))), self.shared(maps)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    for norm in (net.norm, net.shared, net.unmet, net.frozen):
        norm.running_mean.uniform_()
        norm.running_var.uniform_(1, 2)
    return net


def statistics(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the batches' means and that of their unbiased variances, channel by channel."""
    means, variances = [], []
    for batch in maps:
        values = batch.transpose(0, 1).flatten(1)
        mean = values.sum(1) / values.shape[1]
        means.append(mean)
        variances.append(((values - mean[:, None]) ** 2).sum(1) / (values.shape[1] - 1))
    return sum(means) / len(means), sum(variances) / len(variances)


def normal(norm: nn.BatchNorm2d | FrozenBatchNorm2d, maps: Tensor) -> Tensor:
    """A batch norm in training, written out."""
    axes = (0, 2, 3)
    mean, variance = maps.mean(axes, keepdim=True), maps.var(axes, unbiased=False, keepdim=True)
    return (maps - mean) / (variance + norm.eps).sqrt()


def test_statistics_are_the_means_over_batches(net: Net) -> None:
    batches = [torch.rand(size, 3, 9, 9, dtype=torch.float64) * (size + 1) for size in (2, 5, 3)]
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net.eval(), batches, net)
    with torch.no_grad():
        first = [net.first(batch) for batch in batches]
        inside = [net.frozen(normal(net.norm, maps).relu()) for maps in first]
        second = [normal(net.loose, net.second(maps)) for maps in inside]
    expected = {"norm": statistics(first), "shared": statistics([*second, *inside])}
    after = net.state_dict()
    for name, (mean, variance) in expected.items():
        torch.testing.assert_close(after[f"{name}.running_mean"], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after[f"{name}.running_var"], variance, rtol=1e-12, atol=1e-12)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"{name}.{kind}" for name in ("norm", "shared") for kind in kinds}
    assert (net.norm.momentum, net.shared.momentum, net.training) == (0.3, 0.1, True)
    assert not any(norm._forward_hooks for norm in (net.norm, net.shared))


def test_norms_are_as_before_without_batches_and_train_on_after_a_failure(net: Net) -> None:
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net, [], net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(RuntimeError):
        estimate_norms(net, [torch.rand(2, 5, 9, 9)], net)
    assert net.norm.momentum == 0.3 and not net.norm._forward_hooks


def test_frozen_stages_keep_their_statistics() -> None:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=8, box_head_width=16))
    freeze(trunk, 3)
    before = copy.deepcopy(trunk.state_dict())
    estimate_norms(trunk, [torch.rand(2, 3, 64, 64) for _ in range(2)], trunk.backbone)
    moved = {name for name, value in trunk.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert {name.split(".")[2] for name in moved if ".body." in name} == {"layer3", "layer4"}
    assert any(".fpn." in name for name in moved) and not any("box_head" in name for name in moved)


def test_norms_over_processes_are_estimated_too() -> None:
    norm = SynchronizedBatchNorm(3).double()
    values = torch.rand(4, 3, 5, dtype=torch.float64)
    estimate_norms(norm, [values], norm)
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2)))
    torch.testing.assert_close(norm.running_var, values.var((0, 2)))
