"""What losses over a whole batch need when the batch is spread over processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Processes that train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number among them; 0 without torch.distributed."""
    return distributed.get_rank() if world_size() > 1 else 0


def gather(values: Tensor) -> Tensor:
    """The values of all processes in the order of their ranks, (W * N, ...), differentiable; `values` with one process.

    Every process then computes the loss of the whole batch, and gradients flow back to the process that each row came
    from, summed over the processes. Distributed training averages gradients over processes, so that W processes with a
    batch of N each get the gradient of one process with a batch of W * N.

    Args:
        values: (N, ...), the same shape on every process.
    """
    if world_size() == 1:
        return values
    gathered: Tensor = _Gather.apply(values)
    return gathered


def own(gathered: Tensor) -> Tensor:
    """This process's rows (N, ...) of what `gather` gave."""
    return gathered if world_size() == 1 else gathered.chunk(world_size())[distributed.get_rank()]


@torch.no_grad()
def gather_rows(values: Tensor) -> Tensor:
    """The rows of all processes, (R, ...), of which each may have another number, without gradient."""
    if world_size() == 1:
        return values
    counts = gather(torch.tensor([len(values)], device=values.device)).tolist()
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values
    parts = gather(padded).chunk(world_size()) if max(counts) else [values] * len(counts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def averaged(scalars: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    """Scalars as their means over all processes, which all have the same names."""
    if world_size() == 1:
        return scalars
    together = torch.stack([value.to(device, torch.float32, non_blocking=True) for value in scalars.values()])
    distributed.all_reduce(together)
    return dict(zip(scalars, (together / world_size()).unbind(), strict=True))


def agreed(values: Tensor) -> Tensor:
    """The first process's values on all processes."""
    if world_size() > 1:
        distributed.broadcast(values, 0)
    return values


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

    Call it when the module is on its device and before the optimizer is made, and go on with what it returns. Nothing
    happens with one process.
    """
    if world_size() == 1:
        return module
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


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        distributed.all_reduce(summed)
        return summed.chunk(world_size())[distributed.get_rank()]


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
