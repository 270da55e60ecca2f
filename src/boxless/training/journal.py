"""What a run writes down while it trains: metrics.csv, TensorBoard events and lines for people."""

import csv
import io
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Collects scalars per step and writes their means every few steps.

    `metrics.csv` has the columns step, name, value. A journal that is opened again at step s drops what was written
    of later steps, so that a resumed run leaves the same file as an undisturbed one.

    Args:
        folder: of the run.
        start: first step that this process will do.
        total: steps of the run.
        seed: of the run.
        images_per_step: for the speed that is shown.
        every: steps between two reports.
        title: what the lines for people begin with.
        quiet: print nothing.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        total: int,
        seed: int,
        images_per_step: int,
        every: int = 10,
        title: str = "train",
        quiet: bool = False,
    ) -> None:
        self.seed, self.total, self.every, self.quiet = seed, total, every, quiet
        self.images_per_step, self.title = images_per_step, title
        self.status = ""
        self._pending: list[tuple[int, dict[str, Tensor | float]]] = []
        self._file = _continued(folder / "metrics.csv", start)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._board = SummaryWriter(str(folder), purge_step=start)
        self._since, self._counted, self._shown = time.monotonic(), 0, 0.0
        self.speed = 0.0

    def record(
        self, step: int, values: Mapping[str, Tensor | float], now: bool = False
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Take a step's scalars; yields (step, values) of all steps whose scalars were fetched just now.

        `now` writes the mean of what was not written yet, whether or not this step is due.
        """
        on_device = any(isinstance(value, Tensor) and value.is_cuda for value in values.values())
        held = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self._pending.append((step, held))
        self._counted += 1
        due = now or (step + 1) % self.every == 0 or step + 1 == self.total
        if not due and on_device:
            return
        if not due:
            yield step, {name: float(value) for name, value in held.items()}
            return
        fetched = [(past, {name: float(value) for name, value in items.items()}) for past, items in self._pending]
        self._pending.clear()
        yield from fetched
        names = list(fetched[-1][1])
        self.write(step, {name: sum(items[name] for _, items in fetched) / len(fetched) for name in names})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step and, at most every two seconds, a line for people."""
        for name, value in values.items():
            self._rows.writerow([step, name, repr(float(value))])
            self._board.add_scalar(name, value, step)
        self._file.flush()
        now = time.monotonic()
        if "loss" in values and (now - self._shown > 2 or step + 1 == self.total):
            self.speed = self._counted * self.images_per_step / max(now - self._since, 1e-9)
            self._show(step, values["loss"])
            self._since, self._counted, self._shown = now, 0, now

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        self._board.close()

    def _show(self, step: int, loss: float) -> None:
        if self.quiet:
            return
        left = (self.total - step - 1) * self.images_per_step / max(self.speed, 1e-9)
        line = (
            f"{self.title}: step {step + 1}/{self.total}, loss {loss:.4f}, {self.speed:.1f} images/s, "
            f"{_duration(left)} left{', ' + self.status if self.status else ''}"
        )
        if sys.stderr.isatty():
            end = "\n" if step + 1 == self.total else ""
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def read_metrics(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """metrics.csv of a run as name -> (steps, values)."""
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for step, name, value in list(csv.reader(file))[1:]:
            steps, values = metrics.setdefault(name, ([], []))
            steps.append(int(step))
            values.append(float(value))
    return metrics


def _continued(path: Path, start: int) -> io.TextIOWrapper:
    """metrics.csv, open for writing, without rows of steps from `start` on (nor a line that a kill cut in two)."""
    kept = ["step,name,value\n"]
    if path.exists() and start > 0:
        lines = path.read_text().splitlines(keepends=True)[1:]
        kept += [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) < start]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    partial.replace(path)
    return path.open("a", newline="")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
