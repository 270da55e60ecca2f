"""Running statistics of batch norms for the weights that a run ends with (Detectron2's `PreciseBN`).

In training they are moving averages over weights that still moved.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Estimate:
    """The means of one norm's batch statistics; a forward hook, so that a frozen norm's calls can be told."""

    def __init__(self) -> None:
        self.calls = 0
        self.mean: Tensor | float = 0.0
        self.variance: Tensor | float = 0.0

    def __call__(self, norm: Any, *_: object) -> None:
        if norm.training:  # with a momentum of 1, the running statistics are this batch's
            self.calls += 1
            self.mean = self.mean + norm.running_mean.double()
            self.variance = self.variance + norm.running_var.double()


@torch.no_grad()
def estimate_norms(module: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> None:
    """Set the running statistics of batch norms to the means over batches, in place.

    They become the mean of the batches' means and the mean of their variances (each with Bessel's correction, as in the
    moving averages), like fvcore's `update_bn_stats` of the papers' time; since 2021 it also counts how the batches'
    means differ. Weights do not move. Norms that stay in evaluation while the module trains, and those that no batch
    reaches, keep their statistics.

    Args:
        module: is put into training mode.
        batches: as in training.
        forward: takes a batch through the module.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    module.train()
    estimates = [_Estimate() for _ in norms]
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_hook(estimate) for norm, estimate in zip(norms, estimates, strict=True)]
    try:
        for norm in norms:
            norm.momentum = 1.0
        for batch in batches:
            forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for norm, estimate in zip(norms, estimates, strict=True):
        if estimate.calls:
            norm.running_mean.copy_(estimate.mean / estimate.calls)  # type: ignore[union-attr, arg-type]
            norm.running_var.copy_(estimate.variance / estimate.calls)  # type: ignore[union-attr, arg-type]
