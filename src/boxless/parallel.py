"""Parallel execution of tasks: by threads or processes of this machine, or on a Ray cluster.

A task may be done twice, where a worker of a cluster died before it could hand over the result; each result is given
out once.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from boxless.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Results = Generator[tuple[Task, Result], None, None]

RETRIES = 3
"""Tries of a task on a cluster: one that kills its worker each time, for lack of memory say, must end."""


class WorkerDied(Exception):
    """A worker died and took its tasks along; says what to do about it."""


class Engine(Protocol):
    """Does tasks, several at a time."""

    @property
    def slots(self) -> int:
        """Number of tasks at a time."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Results[Task, Result]:
        """Yield each task with its result, in the order in which they get finished; tasks are drawn as there is room.

        Raises:
            WorkerDied: the tasks that were not yielded are not done.
        """


@dataclass(frozen=True)
class Local:
    """Processes of this machine, this one alone where one is enough; or threads.

    Attributes:
        slots: number of processes.
        threads: for work on files and checksums, which lets go of the interpreter.
    """

    slots: int
    threads: bool = False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Results[Task, Result]:
        """See `Engine`."""
        if self.slots == 1:
            yield from ((task, function(task)) for task in tasks)
            return
        with self._pool() as pool:
            try:
                yield from _finished(tasks, lambda: 2 * self.slots, lambda task: pool.submit(function, task))
            except BrokenProcessPool as error:
                advice = "take fewer workers; 1 if this is a script without a __main__ guard"
                raise WorkerDied(f"a worker process died, perhaps for lack of memory ({advice})") from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _pool(self) -> Executor:
        if self.threads:
            return ThreadPoolExecutor(self.slots)
        # spawn: a fork would copy locks that OpenCV's or PyTorch's threads may hold in this process
        return ProcessPoolExecutor(self.slots, multiprocessing.get_context("spawn"), _leave_with_parent)


@dataclass(frozen=True)
class RayCluster:
    """The cluster that this process is connected to, see `ray_cluster`; tasks of a worker that dies go to others.

    Attributes:
        ray: the module.
        workers: at most so many tasks at a time; None for as many as the cluster has cores.
    """

    ray: Any
    workers: int | None

    @property
    def slots(self) -> int:
        """As many as asked for, else one per core that the cluster has at present."""
        return self.workers or max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Results[Task, Result]:
        """See `Engine`; boxless must be installed on each machine of the cluster."""

        def boxless_task(task: Task) -> Result:
            return function(task)

        remote = self.ray.remote(max_retries=RETRIES)(boxless_task)
        room = lambda: self.workers or 2 * self.slots  # noqa: E731 (asked each time: clusters grow and shrink)
        try:
            yield from _finished(tasks, room, lambda task: remote.remote(task).future())
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the function raised
        except self.ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise WorkerDied(f"the Ray cluster gave a task up ({type(error).__name__}: {reason})") from error


def _finished(
    tasks: Iterable[Task], room: Callable[[], int], submit: Callable[[Task], Future[Result]]
) -> Results[Task, Result]:
    """Yield tasks with their results as they get finished; a million under way at once would only fill the memory."""
    waiting = iter(tasks)
    running: dict[Future[Result], Task] = {}
    while True:
        running |= {submit(task): task for task in islice(waiting, max(0, room() - len(running)))}
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def chosen_engine(name: str, ray_address: str | None, workers: int | None) -> Iterator[RayCluster | None]:
    """Connect to the command's `engine`: a Ray cluster while the context lasts, or None for this machine.

    Raises:
        UserError: as `ray_cluster`; an address without Ray; another name.
    """
    if name not in ("local", "ray"):
        raise UserError(f"engine={name}: expected local or ray")
    if name == "local":
        if ray_address is not None:
            raise UserError(f"ray_address={ray_address}: is for a Ray cluster; add --engine ray")
        yield None
        return
    with ray_cluster(ray_address, workers) as cluster:
        yield cluster


@contextmanager
def ray_cluster(address: str | None = None, workers: int | None = None) -> Iterator[RayCluster]:
    """A Ray cluster that is running already, while the context lasts.

    Args:
        address: HOST:PORT of its head, or ray://HOST:PORT; by default $RAY_ADDRESS, or the one of this machine.
        workers: at most so many tasks at a time; by default all its cores.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("engine=ray: needs Ray; get it with pip install 'boxless[ray]'") from error
    if ray.is_initialized():  # by the caller, whose connection it stays
        yield RayCluster(ray, workers)
        return
    _connect(ray, address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        yield RayCluster(ray, workers)
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    name = f"ray_address={address}"
    remedy = "start one with `ray start --head`, and name its head: --ray-address HOST:6379"
    try:
        if address != "auto":  # Ray itself would try for minutes, and speak of it at length
            place = urlsplit(address if "://" in address else f"ray://{address}")
            socket.create_connection((place.hostname or "", place.port or 0), timeout=10).close()
        # CRITICAL: of several tasks that fail Ray would print the tracebacks, but for the one that ends the command
        ray.init(address=address, logging_level="CRITICAL", log_to_driver=False)
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        raise UserError(f"{name}: no Ray cluster there; {remedy}") from error
    except RuntimeError as error:  # other versions of Ray or Python than the cluster's
        raise UserError(f"{name}: {' '.join(str(error).split())[:300]}") from error


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        wait_for([parent.sentinel])
        os._exit(1)  # the pool's workers would wait forever for a parent that was killed

    threading.Thread(target=leave, daemon=True).start()
