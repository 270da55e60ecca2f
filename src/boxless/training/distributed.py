"""Processes that train together: gathered tensors, work of the first process, exchanged values.

Work and values (`on_rank_zero`, `broadcast`, ...) go over TCP (gloo), so that nothing waits for a GPU, and may wait for
days: proposals of a million images take the first process hours; Fabric's own barriers give up after half an hour.
"""

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from boxless.errors import Unfinished, UserError

T = TypeVar("T")

TIMEOUT = timedelta(days=7)


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


@cache
def cpu_group() -> Any:
    """The group of all processes on their CPUs; all must ask for it at the same time."""
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)


def broadcast(value: T) -> T:
    """Return the first process's value on all processes."""
    return value if world_size() == 1 else _broadcast(value)


def on_rank_zero(action: Callable[[], T]) -> T | None:
    """Run an action on the first process and return its result; the others wait for its end and get None.

    Raises:
        UserError: on all processes, as `Unfinished`, if it fails.
    """
    return action() if world_size() == 1 else _on_rank_zero(action)


def rank_zero_first(action: Callable[[], T]) -> T:
    """Run an action on the first process and then on the others, which find what it left on disk."""
    result = on_rank_zero(lambda: (action(),))
    return result[0] if result is not None else action()


def _broadcast(value: T) -> T:
    box: list[Any] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(box, 0, cpu_group())
    received: T = box[0]
    return received


def _on_rank_zero(action: Callable[[], T]) -> T | None:
    failure: BaseException | None = None
    result = None
    if rank() == 0:
        try:
            result = action()
        except BaseException as error:
            failure = error
    known = isinstance(failure, UserError | Unfinished | None)
    received = _broadcast(failure if known else UserError(f"process 0 failed: {failure}"))
    if received is not None:
        raise failure or received
    return result


def total(count: int) -> int:
    """The sum over all processes."""
    return count if world_size() == 1 else _reduced(count, distributed.ReduceOp.SUM)


def largest(count: int) -> int:
    """The largest of all processes."""
    return count if world_size() == 1 else _reduced(count, distributed.ReduceOp.MAX)


def _reduced(count: int, how: Any) -> int:
    value = torch.tensor(count)
    distributed.all_reduce(value, how, cpu_group())
    return int(value)


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, cpu_group())
    return values


def merged(mapping: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of all processes in one mapping."""
    parts = [mapping] if world_size() == 1 else gather_objects(dict(mapping))
    return {key: value for part in parts for key, value in part.items()}


def check_same(what: str, value: str) -> None:
    """Check that all processes have the same value.

    Raises:
        UserError: on all of them, naming the machines.
    """
    if world_size() == 1:
        return
    found = gather_objects((value, socket.gethostname()))
    other = next(((number, *entry) for number, entry in enumerate(found) if entry[0] != found[0][0]), None)
    if other is not None:
        raise UserError(
            f"{what}: process 0 on {found[0][1]} sees {found[0][0]}, process {other[0]} on {other[2]} {other[1]}; "
            "all machines must see the same files"
        )


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
