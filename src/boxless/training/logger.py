"""Metrics of a training run: metrics.csv, TensorBoard events, progress.json, the progress bar, W&B and MLflow."""

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from boxless.errors import UserError
from boxless.files import PARTIAL, to_disk, written
from boxless.training.health import Alarm
from boxless.training.progress import Display, Report

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

T = TypeVar("T")
SECONDS_BETWEEN = 2.0
"""Reports come no faster."""


class MetricLogger:
    """Collects scalars per step and writes their means every few steps.

    `metrics.csv` has the columns step, name, value. A logger that is opened again at step s drops what was
    written of later steps, so that a run that was killed and goes on leaves the same file as an undisturbed one. A run
    that was stopped by a signal or by missing data has one extra row: the mean since the last report. Numbers that
    depend on the machine's speed are in `progress.json`, the newest `Report`, and in TensorBoard's events.

    Args:
        folder: folder of the run; None where another process writes and shows it all.
        start: first step that this process will do.
        total: steps of the run.
        images_per_step: for the speed that is shown.
        every: steps between two reports.
        title: first word of progress lines.
        quiet: print nothing.
        loggers: other loggers of the same scalars, such as Weights & Biases.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int,
        total: int,
        images_per_step: int,
        every: int = 10,
        title: str = "train",
        quiet: bool = False,
        loggers: "Sequence[Logger]" = (),
    ) -> None:
        self.total, self.every = total, every
        self.images_per_step, self.title = images_per_step, title
        self.status = ""
        self._pending: list[dict[str, Tensor | float]] = []
        self._folder = folder
        if folder is not None:
            self._display, self._loggers = Display(quiet), loggers
            self._file = _continued(folder / "metrics.csv", start)
            self._rows = csv.writer(self._file, lineterminator="\n")
            self._board = SummaryWriter(str(folder), purge_step=start)
        self._since, self._waited, self._counted = time.monotonic(), 0.0, 0
        self._report: Report | None = None

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting, but for the first: workers start then."""
        iterator, began = iter(batches), None
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if began is None:
                self._since = time.monotonic()
            else:
                self._waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def record(self, step: int, values: Mapping[str, Tensor | float], now: bool = False) -> None:
        """Take a step's scalars, and write the mean of those since the last time when that is due, or `now`.

        Scalars are fetched a few steps late, so that the device never waits for the log.
        """
        held = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self._pending.append(held)
        self._counted += 1
        if not now and (step + 1) % self.every and step + 1 != self.total:
            return
        self._write_mean(step)
        if now:
            self._to_disk()

    def settle(self, step: int) -> None:
        """Write the mean of what was not written yet, the last of it of `step`, before a checkpoint out of turn."""
        if self._pending:
            self._write_mean(step)
        self._to_disk()

    def _to_disk(self) -> None:
        """Flush, so that no power cut leaves a checkpoint without its rows."""
        if self._folder is not None:
            to_disk(self._folder / "metrics.csv")

    def _write_mean(self, step: int) -> None:
        fetched = [{name: float(value) for name, value in items.items()} for items in self._pending]
        self._pending.clear()
        self.write(step, {name: sum(items[name] for items in fetched) / len(fetched) for name in fetched[-1]})

    def alarm(self, alarm: Alarm) -> None:
        """Show an alarm, and write it beside the scalars."""
        self.status = alarm.text
        self.write(alarm.step, {f"alarm/{alarm.kind}": alarm.value})
        if self._folder is not None:
            self._display.say(f"{self.title}: {alarm.text}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step and, from time to time, a report."""
        if self._folder is None:
            return
        for name, value in values.items():
            self._rows.writerow([step, name, repr(float(value))])
            self._board.add_scalar(name, value, step)
        self._file.flush()
        for logger in self._loggers:
            logger.log_metrics(dict(values), step)
        last = step + 1 == self.total
        if "loss" in values and (last or self._report is None or time.monotonic() - self._since > SECONDS_BETWEEN):
            self._tell(self._folder, step, values["loss"], last)

    def close(self) -> None:
        """Close the files and write the final progress.json."""
        if self._folder is None:
            return
        if self._report is not None:
            self._keep(self._report, self._folder)
        self._display.close()
        for logger in self._loggers:
            logger.finalize("success")
        self._file.close()
        self._board.close()

    def _tell(self, folder: Path, step: int, loss: float, last: bool) -> None:
        now = time.monotonic()
        passed = max(now - self._since, 1e-9)
        speed = self._counted * self.images_per_step / passed
        left = (self.total - step - 1) * self.images_per_step / max(speed, 1e-9)
        report = Report(self.title, step + 1, self.total, loss, speed, self._waited / passed, left, self.status)
        self._board.add_scalar("speed/images_per_second", speed, step)
        self._board.add_scalar("speed/data_wait", report.data_wait, step)
        if last or self._display.due:
            self._display.show(report)
        self._keep(report, folder)
        self._since, self._waited, self._counted = now, 0.0, 0

    def _keep(self, report: Report, folder: Path) -> None:
        """Write progress.json, whole or not at all."""
        self._report = replace(report, status=self.status)
        partial = folder / f"progress.json{PARTIAL}"
        partial.write_text(json.dumps(asdict(self._report), indent=2) + "\n")
        partial.replace(folder / "progress.json")  # often, and of no worth after a power cut: never waits for the disk


def _continued(path: Path, start: int) -> io.TextIOWrapper:
    """metrics.csv, open for writing, without rows of steps from `start` on (nor a line that a kill cut in two)."""
    kept = ["step,name,value\n"]
    if path.exists() and start > 0:
        lines = path.read_text().splitlines(keepends=True)[1:]
        kept += [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) < start]
    with written(path) as partial:
        partial.write_text("".join(kept))
    return path.open("a", newline="")


def make_loggers(names: Sequence[str], folder: Path, recipe: dict[str, Any]) -> "list[Logger]":
    """The named loggers (wandb, mlflow) of a run in `folder`, with its recipe, nested.

    Their files go into the run's folder. W&B sends them only with WANDB_MODE=online, MLflow only where
    MLFLOW_TRACKING_URI names a server.

    Raises:
        UserError: if the library is missing.
    """
    loggers = [_LOGGERS[name](folder) for name in dict.fromkeys(names)]
    for logger in loggers:
        logger.log_hyperparams(recipe)
    return loggers


def _wandb(folder: Path) -> "Logger":
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the library is loaded
    _need("wandb")
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") != "online"
    return WandbLogger(
        folder.name, save_dir=folder, offline=offline, project=os.environ.get("WANDB_PROJECT", "boxless")
    )


def _mlflow(folder: Path) -> "Logger":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _need("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve()}/mlflow.db")
    return MLFlowLogger("boxless", run_name=folder.name, tracking_uri=where)


_LOGGERS = {"wandb": _wandb, "mlflow": _mlflow}


def _need(library: str) -> None:
    try:
        __import__(library)
    except ImportError as error:
        raise UserError(f"loggers={library}: is not installed; pip install 'boxless[{library}]'") from error
