"""The moving average of a network's weights, which is often a better detector than the last step's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a module's parameters and buffers over the last steps of a run.

    With a window of n steps the decay of step t = 0, 1, ... is min(1 - 1 / n, 1 - 1 / (t + 1)): the plain mean of all
    weights so far until t = n, then an exponential average. So it is never an average of the start, as one with a
    constant decay is in short runs. Integers (such as counts of batches) are copied.

    Args:
        module: whose weights are averaged; on its device.
        window: steps, 1 or more.
    """

    def __init__(self, module: nn.Module, window: int) -> None:
        self.window = window
        self._live = dict(module.state_dict())
        self._average = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, which counts from 0."""
        share = max(1 / self.window, 1 / (step + 1))
        floating = [name for name, value in self._live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self._average[n] for n in floating], [self._live[n] for n in floating], share)
        for name in self._live.keys() - floating:
            self._average[name].copy_(self._live[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module for the length of the block."""
        last = {name: value.clone() for name, value in self._live.items()}
        try:
            self.apply()
            yield
        finally:
            try:
                self._copy(last, self._live)
            except BaseException:  # a signal, which comes once: no checkpoint may hold a mixture
                self._copy(last, self._live)
                raise

    def apply(self) -> None:
        """Put the average into the module for good."""
        self._copy(self._average, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of the module's."""
        return self._average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averaged weights."""
        self._copy(state, self._average)

    @torch.no_grad()
    def _copy(self, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, value in target.items():
            value.copy_(source[name])
