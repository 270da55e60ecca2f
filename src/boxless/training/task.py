"""A thing that is trained. Pretraining, detection and segmentation are Tasks; `fit` trains any of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from boxless.training.health import Alarm
from boxless.training.logger import MetricLogger
from boxless.training.memory import MicroBatches, OutOfMemory
from boxless.training.nan_guard import NonFiniteStep


class OptimSettings(Protocol):
    """Settings of the optimiser that `fit` reads."""

    @property
    def clip_norm(self) -> float | None:
        """Largest norm of all gradients together; None: gradients are not clipped."""


class Settings(Protocol):
    """Settings of a recipe that `fit` reads; recipes are frozen dataclasses."""

    @property
    def optim(self) -> OptimSettings:
        """Optimiser and learning rate."""

    @property
    def seed(self) -> int:
        """Seed of every random draw."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def loggers(self) -> Sequence[str]:
        """Loggers beside metrics.csv and TensorBoard."""


class Folder(Protocol):
    """A run's folder."""

    @property
    def path(self) -> Path:
        """The folder."""


class Task(Protocol):
    """A thing that is trained: `fit` calls `build`, then, step by step, `batches`, `loss` and `after_step`.

    Attributes:
        title: first word of progress lines, such as pretrain.
        recipe: settings.
        steps: optimizer steps from start to end.
        batch: images per step, over all processes.
        module: the trained module, on its device; available after `build`.
        optimizer: over the module; a group's `lr_scale` multiplies the learning rate; there after `build`.
        evaluate_every: steps between calls of `evaluate`; None: never.
        micro_batches: parts of a batch that `loss` takes one after the other.
        skipped: images that could not be read, with reasons; kept in checkpoints.
        alarms: alarms so far; kept in checkpoints.
    """

    title: str
    steps: int
    batch: int
    module: nn.Module
    optimizer: Optimizer
    evaluate_every: int | None
    micro_batches: MicroBatches
    skipped: dict[str, str]
    alarms: list[Alarm]

    @property
    def recipe(self) -> Settings:
        """Settings."""

    def build(self, fresh: bool) -> None:
        """Make `module` and `optimizer`; a fresh run loads the weights that it starts from."""

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""

    def batches(self, first: int, end: int) -> Iterable[Any]:
        """This process's batches of the steps `first` to `end`."""

    def loss(self, module: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Named scalars of a micro-batch: `loss` is minimised, the others are logged.

        Args:
            module: `self.module` as Fabric has set it up.
            batch: a micro-batch.
            step: 0, 1, ...
        """

    def after_step(self, step: int, log: MetricLogger) -> None:
        """Move targets and measure, once per optimizer step; may end the run by a `UserError`."""

    def evaluate(self) -> Mapping[str, float]:
        """Scores on validation data, called on the first process."""

    def state(self) -> dict[str, Any]:
        """Contents of checkpoints besides module, optimizer, skipped images and alarms."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""

    def remedy(self, error: OutOfMemory | NonFiniteStep) -> str:
        """Advice for the user about a step that failed."""

    def finish(self, seconds: float) -> None:
        """Write weights and summary; called on all processes.

        Args:
            seconds: training time of the run, over all resumes.
        """
