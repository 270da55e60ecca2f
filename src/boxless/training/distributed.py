"""What losses over a whole batch need when the batch is spread over processes."""

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Processes that train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


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
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return gathered


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
