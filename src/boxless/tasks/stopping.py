"""How a command ends when a signal asks it to: with what is done kept, and back in SLURM's queue."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from boxless.errors import Unfinished
from boxless.training.distributed import rank
from boxless.training.signals import Interruption


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals end a command by `Unfinished`; after SIGUSR1 the job goes back into SLURM's queue.

    SIGUSR1 is what `sbatch --signal=USR1@300` sends before the time is up. After SIGTERM nothing is queued: it comes
    with preemption, after which SLURM does so by itself, and with `scancel`, after which nobody wants it.
    """
    try:
        with Interruption() as interruption, interruption.at_once():
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
