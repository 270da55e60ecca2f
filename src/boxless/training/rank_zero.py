"""What one of several processes does for all, and the few numbers that they tell each other beside their training.

All of it goes from machine to machine over TCP (gloo), so that nothing waits for a GPU, and waits for days if need be:
proposals of a million images take the first process hours.
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

PATIENCE = timedelta(days=7)


@cache
def hosts() -> Any:
    """The group of all processes that these talks go through; all must ask for it at the same time."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def shared(value: T) -> T:
    """The first process's value, on all of them."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(box, 0, hosts())
    told: T = box[0]
    return told


def alone(action: Callable[[], T]) -> T | None:
    """What an action gives that the first process does; the others wait for its end and get None.

    Raises:
        UserError: on all processes, as `Unfinished`, where it fails.
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
    told = shared(told)
    if told is not None:
        raise failure or told
    return result


def in_turn(action: Callable[[], T]) -> T:
    """What an action gives that the first process does, and then the others, who find what it left on disk."""
    result = alone(lambda: (action(),))
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
    distributed.all_reduce(value, how, hosts())
    return int(value)


def each(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, hosts())
    return values


def united(mapping: Mapping[str, str]) -> dict[str, str]:
    """The entries of all processes."""
    return {key: value for part in each(dict(mapping)) for key, value in part.items()}


def check_same(what: str, value: str) -> None:
    """See to it that all processes have the same.

    Raises:
        UserError: on all of them, naming the machines.
    """
    found = each((value, socket.gethostname()))
    other = next(((number, *entry) for number, entry in enumerate(found) if entry[0] != found[0][0]), None)
    if other is not None:
        raise UserError(
            f"{what}: process 0 on {found[0][1]} sees {found[0][0]}, process {other[0]} on {other[2]} {other[1]}; "
            "all machines must see the same files"
        )
