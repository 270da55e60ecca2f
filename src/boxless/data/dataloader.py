"""The one way to a DataLoader, what its workers do with signals, and batches copied to the GPU ahead of their time."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class OnDevice(Protocol):
    """A batch on a device."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the batch's memory from being given away while a stream uses it."""


B = TypeVar("B", bound=OnDevice)


def make_loader(
    dataset: Dataset[Any],
    batches: int | Sampler[list[tuple[int, int]]],
    workers: int,
    collate: Callable[[Sequence[Any]], Any] = list,
    pinned: bool = False,
) -> DataLoader[Any]:
    """Batches of a data set: of so many samples in its order, or those of a sampler; workers live as long as the run.

    Args:
        dataset: the samples.
        batches: size of a batch, or a sampler that says what each batch is made of.
        workers: processes that read; 0 for this one.
        collate: makes a batch of samples.
        pinned: if true, put batches into page-locked memory, for copies that do not wait.
    """
    return DataLoader(
        dataset,
        batch_size=batches if isinstance(batches, int) else 1,
        batch_sampler=None if isinstance(batches, int) else batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=init_worker,
    )


def to_device(batches: Iterable[Any], device: torch.device, move: Callable[[Any, torch.device], B]) -> Iterator[B]:
    """Batches moved to the device; a GPU gets the next one on a stream of its own, while it works on this one."""
    if device.type != "cuda":
        for batch in batches:
            yield move(batch, device)
        return
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[B, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(beside):
            coming = move(batch, device), beside.record_event()
        if ahead is not None:
            yield _ready(*ahead)
        ahead = coming
    if ahead is not None:
        yield _ready(*ahead)


def _ready(batch: B, copied: torch.cuda.Event) -> B:
    """A batch that was copied on another stream, for this one to use once it is there."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    batch.record_stream(stream)
    return batch


def init_worker(_: int) -> None:
    """Keep a data worker to one thread, for the cores belong to the others and to training, and to its work.

    Signals that ask a run to end reach its workers too (Ctrl-C, SLURM's), which it needs for the step that it finishes.
    Where the run ends while it fetches a batch, the worker's thread that hands it out has nothing to add.
    """
    torch.set_num_threads(1)
    sys.excepthook = _without_lost_connections
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _without_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave_when_told(run: int) -> None:
    """End this data worker when its run, a process id, says so: one that ends by an error would wait for it forever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
