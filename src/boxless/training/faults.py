"""Turn external failures (missing data, dead workers and processes, full disks) into one-line errors."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TypeVar

from torch import distributed

from boxless.errors import UserError
from boxless.files import explain_write_errors, silent_threads
from boxless.training.distributed import world_size

T = TypeVar("T")

_WORKER = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: \w+|exited unexpectedly[^.]*)"
    r"|Pin memory thread exited unexpectedly"  # with a GPU it is the one that waits for the workers
)
_LOST = (ConnectionError, EOFError, FileNotFoundError)
"""Python's errors when the process at the other end, or its socket, is gone."""
_PROCESS = re.compile(r"gloo|NCCL|Connection (?:closed|reset)|Broken pipe|timed out", re.IGNORECASE)


@contextmanager
def one_line_faults(out: Path) -> Iterator[None]:
    """End the run in the folder `out` with one line if something outside of it fails.

    Raises:
        UserError: with that line.
    """
    try:
        with explain_write_errors(out), silent_threads(_lost_connection):
            yield
    except (RuntimeError, *_LOST) as error:
        line = _line(error)
        if line is None:
            raise
        raise UserError(f"{out}: {line}") from error


def _line(error: Exception) -> str | None:
    """A data worker or another process that died, in words; None: the error is something else."""
    if (worker := _dead_worker(error)) is not None:
        return f"{worker}; what was saved stays, repeat the command to continue"
    process = isinstance(error, RuntimeError) and _PROCESS.search(str(error))
    if world_size() > 1 and (isinstance(error, distributed.DistError) or process):
        reason = " ".join(str(error).split())[:160]
        return (
            f"another of the {world_size()} processes died or cannot be reached ({reason}); the newest checkpoint "
            "stays, start all of them again to continue"
        )
    return None


def until_lost(batches: Iterable[T], keep: Callable[[], str]) -> Iterator[T]:
    """Yield the batches; if the next one cannot be read, save the finished steps first.

    `keep`: writes a checkpoint and says what that is of.

    Raises:
        UserError: for data that cannot be had, and where a data worker died.
    """
    try:
        yield from batches
    except (UserError, RuntimeError, *_LOST) as error:
        lost = str(error) if isinstance(error, UserError) else _dead_worker(error)
        if lost is None or world_size() > 1:  # of several processes the others are in the next step already
            raise
        raise UserError(f"{lost}; {keep()}, repeat the command to continue") from error


def _dead_worker(error: BaseException | None) -> str | None:
    """Error of a dead data worker, which may come at any moment, even inside torch.save, which hides it."""
    while error is not None:
        match = _WORKER.search(str(error))
        if match or _lost_connection(error):
            reason = match[0] if match else " ".join(str(error).split()) or "its connection ended"
            return f"a data worker died ({reason}), perhaps for lack of memory: fewer --workers need less"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _lost_connection(error: BaseException) -> bool:
    """Return whether a worker's connection ended, which Python may see before PyTorch sees the process dead."""
    if not isinstance(error, _LOST):
        return False
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.startswith("multiprocessing.") for name in modules)
