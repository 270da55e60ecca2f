import pytest
import torch
from torch import nn

from boxless.training.ema import WeightAverage


def module(value: float) -> nn.Module:
    made = nn.BatchNorm1d(1)
    fill(made, value)
    return made


def fill(norm: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in (*norm.parameters(), norm.running_mean, norm.running_var):
            parameter.fill_(value)  # type: ignore[union-attr,operator]
    norm.num_batches_tracked.fill_(int(value))  # type: ignore[union-attr,operator]


def test_the_average_is_the_plain_mean_until_the_window_is_full_and_then_exponential() -> None:
    live = module(0.0)
    average, found = WeightAverage(live, window=4), []
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 5.0]):
        fill(live, value)
        average.update(step)
        found.append(average.state_dict()["weight"].item())
    assert found == pytest.approx([1.0, 1.5, 2.0, 2.5, 2.5 + 2.5 / 4, 3.125 + 1.875 / 4])
    assert float(average.state_dict()["running_var"]) == pytest.approx(found[-1])
    assert int(average.state_dict()["num_batches_tracked"]) == 5


def test_the_average_is_put_in_for_a_block_or_for_good_and_goes_on_from_its_state() -> None:
    live = module(2.0)
    average = WeightAverage(live, window=10)
    average.update(0)
    fill(live, 4.0)
    average.update(1)
    with average.applied():
        assert live.weight.item() == 3.0
    assert live.weight.item() == 4.0
    other = WeightAverage(module(9.0), window=10)
    other.load_state_dict(average.state_dict())
    assert float(other.state_dict()["weight"]) == 3.0
    average.apply()
    assert live.weight.item() == 3.0 and live.running_mean.item() == 3.0
