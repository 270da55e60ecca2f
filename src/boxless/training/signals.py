"""Signals that ask a command to end: it ends after the step that it is in, so that nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import distributed

from boxless.errors import Unfinished
from boxless.training.distributed import cpu_group, rank, world_size

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""A scheduler takes the machine; its time is nearly up (`sbatch --signal`); Ctrl-C. Windows has no SIGUSR1."""


class Signals:
    """Remembers a signal while it is entered; all processes end after the same step.

    Call it after each step, on all processes: true if the run ends here. With several processes the answer is a step
    old, so that no step waits for the exchange between them. A second Ctrl-C ends everything at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}
        self._news: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # nobody else may handle signals
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to end here."""
        return self.signal is not None if world_size() == 1 else self._agreed()

    def _agreed(self) -> bool:
        """Return whether any process had a signal a step ago."""
        if self._news is not None:
            work, received = self._news
            work.wait()
            self.signal = int(received) or self.signal
            if int(received):
                return True
        flag = torch.tensor(self.signal or 0)
        self._news = distributed.all_reduce(flag, distributed.ReduceOp.MAX, cpu_group(), async_op=True), flag
        return False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Unfinished` as soon as a signal comes in this block, for work that can be given up anywhere."""
        self._at_once = True
        try:
            if self.signal is not None:
                self._stop()
            yield
        finally:
            self._at_once = False

    def unfinished(self, out: Path, step: int, total: int) -> Unfinished:
        """Return the exception of a run in the folder `out` that ends after `step` of `total` steps."""
        assert self.signal is not None
        name = signal.Signals(self.signal).name
        return Unfinished(
            f"{out}: stopped by {name}; {step} of {total} steps are kept, repeat the command to continue",
            self.signal,
        )

    def _receive(self, number: int, _: object) -> None:
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


@contextmanager
def stoppable() -> Iterator[None]:
    """End a command by `Unfinished` when a signal comes; after SIGUSR1 the job goes back into SLURM's queue.

    SIGUSR1 is what `sbatch --signal=USR1@300` sends before the time is up. After SIGTERM nothing is queued: it comes
    with preemption, after which SLURM does so by itself, and with `scancel`, after which nobody wants it.
    """
    try:
        with Signals() as signals, signals.at_once():
            yield
    except Unfinished as stop:
        if stop.signal == getattr(signal, "SIGUSR1", None) and rank() == 0:
            requeue(os.environ)
        raise


def requeue(environment: Mapping[str, str]) -> None:
    """Put this process's SLURM job, if it is of one, back into the queue, and say so."""
    if "SLURM_JOB_ID" not in environment or shutil.which("scontrol") is None:
        return
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:  # one task of an array has the whole array's id
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    said = f"job {job} is back in the queue" if done.returncode == 0 else f"job {job}: {done.stderr.strip()}"
    print(f"scontrol requeue: {said}", file=sys.stderr, flush=True)
