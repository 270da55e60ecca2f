"""Batch norms whose statistics are those of all processes."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from boxless.training.distributed import world_size


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics in training are those of all processes: `torch.nn.SyncBatchNorm` for processors."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalise (N, C, ...); N may differ between processes."""
        if not self.training or world_size() == 1:
            return super().forward(values)
        given, values = values.dtype, values.to(torch.promote_types(values.dtype, torch.float32))
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [1, -1] + [1] * (values.ndim - 2)
        rows = values.new_tensor([values.numel() / values.shape[1]])
        totals = _summed(torch.cat([values.sum(axes), rows]))
        mean, count = totals[:-1] / totals[-1], totals[-1]
        centred = values - mean.view(shape)
        variance = _summed(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        normal = normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal
        return normal.to(given)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape, as in `torch.nn.SyncBatchNorm`."""


def synchronize_norms(module: nn.Module) -> nn.Module:
    """The module with batch norms over all processes, names of parameters and buffers as before.

    Call it when the module is on its device and before the optimizer is made, and go on with what it returns.
    """
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    acting = [name for name, norm in norms.items() if hasattr(norm, "act")]
    if any(p.is_cuda for p in module.parameters()):
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    else:
        for norm in norms.values():
            norm.__class__ = SynchronizedBatchNorm  # the same object: whoever holds it, parts of a trunk too, has it
    for name, norm in norms.items():  # a converted norm is a new object: frozen ones are kept still by a hook
        module.get_submodule(name)._forward_pre_hooks.update(norm._forward_pre_hooks)
    for name in acting:
        module.get_submodule(name).register_forward_hook(_activate)
    return module


def _activate(norm: Any, _: object, normal: Tensor) -> Tensor:
    activated: Tensor = norm.act(norm.drop(normal))  # timm's norms hold the activation that follows them
    return activated


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
