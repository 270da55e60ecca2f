"""Progress of a long run, on stderr: a bar in a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 10.0  # seconds between plain lines


@contextmanager
def progress(total: int, quiet: bool = False, what: str = "proposals") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` images are done."""
    if quiet:
        yield lambda images: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(TextColumn(what), *columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total, rate="")
            report = _Rate(total, what)

            def advance(images: int) -> None:
                report.done += images
                bar.update(task, advance=images, rate=f"{report.per_second():.1f} images/s")

            yield advance
    else:
        yield _Rate(total, what).print_line


class _Rate:
    def __init__(self, total: int, what: str) -> None:
        self.total, self.done, self.what = total, 0, what
        self.start = self.last = time.monotonic()

    def per_second(self) -> float:
        return self.done / max(time.monotonic() - self.start, 1e-9)

    def print_line(self, images: int) -> None:
        self.done += images
        now = time.monotonic()
        if now - self.last >= INTERVAL or self.done == self.total:
            self.last = now
            left = _duration((self.total - self.done) / max(self.per_second(), 1e-9))
            rate = f"{self.per_second():.1f} images/s"
            print(f"{self.what}: {self.done} of {self.total} images, {rate}, {left} left", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
