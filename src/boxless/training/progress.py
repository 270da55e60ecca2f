"""Progress of training, proposals and packing on standard error: a bar, plain lines or lines of JSON.

The environment variable BOXLESS_PROGRESS chooses: auto (a bar on a terminal, else a plain line now and then), bar,
plain, json or none. It holds for every command, and for the runs that a command starts.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from boxless.errors import UserError

SECONDS_BETWEEN = {"bar": 0.0, "plain": 20.0, "json": 0.0}
"""Least seconds between reports: a log file should not grow by a line every second for days."""


@dataclass(frozen=True)
class Report:
    """Progress of a run.

    Attributes:
        title: pretrain or finetune.
        step: steps done, of `total`.
        loss: mean over the last steps.
        images_per_second: since the last report.
        data_wait: share of that time in which the device waited for images, 0..1.
        seconds_left: at this speed.
        status: a verdict in words, such as healthy; may be empty.
    """

    title: str
    step: int
    total: int
    loss: float
    images_per_second: float
    data_wait: float
    seconds_left: float
    status: str

    @property
    def details(self) -> str:
        """All but title and step, in words."""
        parts = [
            f"loss {self.loss:.4f}",
            f"{self.images_per_second:.1f} images/s",
            f"{self.data_wait:.0%} waiting for data",
            f"{duration(self.seconds_left)} left",
        ]
        return ", ".join([*parts, self.status] if self.status else parts)

    def __str__(self) -> str:
        return f"{self.title}: step {self.step}/{self.total}, {self.details}"


@dataclass(frozen=True)
class ImageCount:
    """Images that are done of a total, at which speed."""

    title: str
    step: int
    total: int
    images_per_second: float
    seconds_left: float

    @property
    def details(self) -> str:
        """All but title and count, in words."""
        return f"{self.images_per_second:.1f} images/s, {duration(self.seconds_left)} left"

    def __str__(self) -> str:
        return f"{self.title}: {self.step} of {self.total} images, {self.details}"


class Display:
    """Shows reports in the way that BOXLESS_PROGRESS says; `quiet` shows none."""

    def __init__(self, quiet: bool = False) -> None:
        self.mode = "none" if quiet else _mode()
        self._shown = float("-inf")
        self._bar: Bar | None = None

    @property
    def due(self) -> bool:
        """True if it is time for another report."""
        return self.mode != "none" and time.monotonic() - self._shown >= SECONDS_BETWEEN[self.mode]

    def show(self, report: Report | ImageCount) -> None:
        """Show a report now."""
        if self.mode == "none":
            return
        self._shown = time.monotonic()
        if self.mode == "bar":
            self._draw(report)
        elif self.mode == "json":
            print(json.dumps(asdict(report)), file=sys.stderr, flush=True)
        else:
            print(report, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Show a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.mode in ("bar", "plain"):
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal; the bar stays at its last position."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, report: Report | ImageCount) -> None:
        if self._bar is None:
            words = TextColumn("{task.fields[details]}", markup=False, style="default")
            columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), words
            self._bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self._bar.start()
            self._bar.add_task(report.title, total=report.total, details="")
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=report.step, details=report.details, refresh=True)


@contextmanager
def progress(total: int, quiet: bool = False, what: str = "proposals") -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of further finished images, of `total`."""
    display, started, done = Display(quiet), time.monotonic(), 0
    shown, pause = started, max(0.1, SECONDS_BETWEEN.get(display.mode, 0.0))

    def advance(images: int) -> None:
        nonlocal done, shown
        done += images
        now = time.monotonic()
        if now - shown >= pause or done == total:
            shown, rate = now, done / max(now - started, 1e-9)
            display.show(ImageCount(what, done, total, rate, (total - done) / max(rate, 1e-9)))

    try:
        yield advance
    finally:
        display.close()


def _mode() -> str:
    mode = os.environ.get("BOXLESS_PROGRESS", "auto")
    if mode not in ("auto", "none", *SECONDS_BETWEEN):
        raise UserError(f"BOXLESS_PROGRESS={mode}: expected auto, none, {', '.join(SECONDS_BETWEEN)}")
    if mode == "auto":
        return "bar" if sys.stderr.isatty() else "plain"
    return mode


def duration(seconds: float) -> str:
    """Format seconds for people: 2.5 h, 12 min, 40 s."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def say(text: str, quiet: bool) -> None:
    """Write a line for people on standard error, unless `quiet`."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
