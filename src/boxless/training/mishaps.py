"""What befalls a run from outside: data that cannot be had, data workers and processes that die, full disks."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import TypeVar

from torch import distributed

from boxless.durable import in_words
from boxless.errors import UserError
from boxless.training.distributed import world_size

T = TypeVar("T")

_WORKER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: \w+|exited unexpectedly[^.]*)")
_PROCESS = re.compile(r"gloo|NCCL|Connection (?:closed|reset)|Broken pipe|timed out", re.IGNORECASE)


@contextmanager
def mishaps(out: Path) -> Iterator[None]:
    """Let what befalls the run in the folder `out` end it with one line.

    Raises:
        UserError: that line.
    """
    try:
        with in_words(out):
            yield
    except (RuntimeError, OSError, EOFError) as error:
        if (worker := _dead_worker(error)) is not None:
            raise UserError(f"{out}: {worker}; what was kept stays, give the same command again to go on") from error
        if world_size() > 1 and (isinstance(error, distributed.DistError) or _PROCESS.search(str(error))):
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{out}: another of the {world_size()} processes died or cannot be reached ({reason}); the newest "
                "checkpoint stays, start all of them again to go on"
            ) from error
        raise


def until_lost(batches: Iterable[T], keep: Callable[[], str]) -> Iterator[T]:
    """The batches; where the next one cannot be had, what was learned is kept first, for it is whole.

    `keep`: writes a checkpoint and says what that is of.

    Raises:
        UserError: for data that cannot be had, and where a data worker died.
    """
    try:
        yield from batches
    except (UserError, RuntimeError, OSError, EOFError) as error:
        lost = str(error) if isinstance(error, UserError) else _dead_worker(error)
        if lost is None or world_size() > 1:  # of several processes the others are in the next step already
            raise
        raise UserError(f"{lost}; {keep()}, give the same command again to go on") from error


def _dead_worker(error: BaseException | None) -> str | None:
    """What a dead data worker raises, at any moment: in the midst of a checkpoint too, which torch.save hides."""
    while error is not None:
        match = _WORKER.search(str(error))
        if match or _lost_connection(error):
            reason = match[0] if match else " ".join(str(error).split()) or "its connection ended"
            return f"a data worker died ({reason}), perhaps for lack of memory: fewer --workers need less"
        error = error.__cause__ or error.__context__
    return None


def _lost_connection(error: BaseException) -> bool:
    """Whether a worker's connection ended under Python's hands: it can be gone before PyTorch sees the process dead."""
    places = extract_tb(error.__traceback__)
    return isinstance(error, OSError | EOFError) and any("multiprocessing" in place.filename for place in places)
