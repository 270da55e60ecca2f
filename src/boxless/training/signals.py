"""Signals that ask a run to end: heeded when a step is over, so that nothing is lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import distributed

from boxless.errors import Unfinished
from boxless.training.distributed import rank, world_size
from boxless.training.rank_zero import hosts

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""A scheduler takes the machine; its time is nearly up (`sbatch --signal`); Ctrl-C. Windows has no SIGUSR1."""


class Interruption:
    """Remembers a signal while it is entered; all processes know of it after the same step.

    Call it after each step, on all processes: true where the run shall end here. Of several processes it tells what was
    known a step ago, so that no step waits for the talk between them. A second Ctrl-C ends everything at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}
        self._news: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # nobody else may handle signals
            self._before = {number: signal.signal(number, self._heed) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether to end here."""
        if world_size() == 1:
            return self.signal is not None
        if self._news is not None:
            work, heard = self._news
            work.wait()
            self.signal = int(heard) or self.signal
            if int(heard):
                return True
        flag = torch.tensor(self.signal or 0)
        self._news = distributed.all_reduce(flag, distributed.ReduceOp.MAX, hosts(), async_op=True), flag
        return False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While in it a signal raises `Unfinished`, for work that can be given up anywhere."""
        self._at_once = True
        try:
            if self.signal is not None:
                self._stop()
            yield
        finally:
            self._at_once = False

    def unfinished(self, out: Path, step: int, total: int) -> Unfinished:
        """What a run in the folder `out` says that ends after a step of its total."""
        assert self.signal is not None
        name = signal.Signals(self.signal).name
        return Unfinished(
            f"{out}: stopped by {name}; {step} of {total} steps are kept, give the same command again to go on",
            self.signal,
        )

    def _heed(self, number: int, _: object) -> None:
        again = self.signal is not None
        self.signal = self.signal or number
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self._at_once:
            self._stop()
        if number == signal.SIGINT and rank() == 0:  # a step may take a while; print() may not be entered twice
            os.write(2, b"\nboxless: ending after this step; Ctrl-C again ends at once\n")

    def _stop(self) -> None:
        assert self.signal is not None
        self._at_once = False  # not once more on the way out
        raise Unfinished(f"stopped by {signal.Signals(self.signal).name}", self.signal)
