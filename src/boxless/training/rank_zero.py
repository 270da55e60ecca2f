"""Work that one process does for all, and values that processes exchange beside their training.

Everything goes over TCP (gloo), so that nothing waits for a GPU, and may wait for days: proposals of a million images
take the first process hours, where Fabric's own barriers give up after half an hour.
"""

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import distributed

from boxless.errors import Unfinished, UserError
from boxless.training.distributed import rank, world_size

T = TypeVar("T")

TIMEOUT = timedelta(days=7)


@cache
def cpu_group() -> Any:
    """The group of all processes on their CPUs; all must ask for it at the same time."""
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)


def broadcast(value: T) -> T:
    """Return the first process's value on all processes."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(box, 0, cpu_group())
    told: T = box[0]
    return told


def on_rank_zero(action: Callable[[], T]) -> T | None:
    """Run an action on the first process and return its result; the others wait for its end and get None.

    Raises:
        UserError: on all processes, as `Unfinished`, if it fails.
    """
    failure: BaseException | None = None
    result = None
    if rank() == 0:
        try:
            result = action()
        except BaseException as error:
            if world_size() == 1:
                raise
            failure = error
    told = failure if isinstance(failure, UserError | Unfinished | None) else UserError(f"process 0 failed: {failure}")
    told = broadcast(told)
    if told is not None:
        raise failure or told
    return result


def rank_zero_first(action: Callable[[], T]) -> T:
    """Run an action on the first process and then on the others, which find what it left on disk."""
    result = on_rank_zero(lambda: (action(),))
    return result[0] if result is not None else action()


def total(count: int) -> int:
    """The sum over all processes."""
    return _reduced(count, distributed.ReduceOp.SUM)


def largest(count: int) -> int:
    """The largest of all processes."""
    return _reduced(count, distributed.ReduceOp.MAX)


def _reduced(count: int, how: Any) -> int:
    if world_size() == 1:
        return count
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
    return {key: value for part in gather_objects(dict(mapping)) for key, value in part.items()}


def check_same(what: str, value: str) -> None:
    """Check that all processes have the same value.

    Raises:
        UserError: on all of them, naming the machines.
    """
    found = gather_objects((value, socket.gethostname()))
    other = next(((number, *entry) for number, entry in enumerate(found) if entry[0] != found[0][0]), None)
    if other is not None:
        raise UserError(
            f"{what}: process 0 on {found[0][1]} sees {found[0][0]}, process {other[0]} on {other[2]} {other[1]}; "
            "all machines must see the same files"
        )
