from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from boxless.errors import UserError
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.runs.run import Run
from boxless.training.checkpoint import checkpoints, load_checkpoint
from boxless.training.fit import fit
from boxless.training.health import Alarm
from boxless.training.logger import MetricLogger
from boxless.training.memory import MicroBatches, OutOfMemory
from boxless.training.nan_guard import NonFiniteStep

Losses = Callable[[nn.Module, Any, int], Mapping[str, Tensor]]


class Toy:
    """A Task with everything that happens written down; by default eight steps on w^2 from w = 1."""

    title, steps, batch = "toy", 8, 1
    evaluate_every: int | None = None
    module: nn.Module
    optimizer: Optimizer

    def __init__(
        self, losses: Losses | None = None, batches: Sequence[Any] = (1.0,) * 8, clip_norm: float | None = None
    ) -> None:
        self.recipe = FinetuneRecipe(seed=1, checkpoint_every=3, optim=FinetuneOptim(clip_norm=clip_norm))
        self.micro_batches = MicroBatches(1)
        self.skipped: dict[str, str] = {}
        self.alarms: list[Alarm] = []
        self.all, self.losses, self.steps = batches, losses or self.squares, len(batches)
        self.events: list[tuple[str, int]] = []
        self.draws: list[float] = []
        self.finished = False

    def squares(self, module: nn.Module, batch: float, step: int) -> Mapping[str, Tensor]:
        return {"loss": module.weight.square().sum() * batch}  # type: ignore[union-attr,operator]

    def build(self, fresh: bool) -> None:
        self.module = nn.Linear(1, 1, bias=False).eval()
        nn.init.ones_(self.module.weight)
        self.optimizer = SGD([{"params": [self.module.weight], "lr_scale": 0.5}], lr=99.0)

    def learning_rate(self, step: int) -> float:
        return 0.1 / (step + 1)

    def batches(self, first: int, end: int) -> Iterable[Any]:
        return self.all[first:end]

    def loss(self, module: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        self.events.append(("loss", step))
        self.draws.append(torch.rand(()).item())
        return self.losses(module, batch, step)

    def after_step(self, step: int, log: MetricLogger) -> None:
        self.events.append(("after", step))

    def evaluate(self) -> Mapping[str, float]:
        self.events.append(("evaluate", len(self.draws)))
        return {"AP": 0.5}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.events.append(("restore", state["step"]))

    def remedy(self, error: OutOfMemory | NonFiniteStep) -> str:
        return "Lower the rate"

    def finish(self, seconds: float) -> None:
        self.finished = True


def run(task: Toy, folder: Path, fabric: Fabric | None = None) -> Toy:
    folder.mkdir(exist_ok=True)
    fit(task, SimpleNamespace(path=folder), fabric or Fabric(accelerator="cpu", devices=1), quiet=True)  # type: ignore[arg-type]
    return task


def weight(task: Toy) -> float:
    (parameter,) = task.module.parameters()
    return parameter.item()


def test_each_step_trains_once_at_its_rate_and_saves_when_due(tmp_path: Path) -> None:
    task = run(Toy(), tmp_path)
    expected = 1.0
    for step in range(8):
        expected -= 0.5 * 0.1 / (step + 1) * 2 * expected
    assert weight(task) == pytest.approx(expected, rel=1e-6) and task.finished
    assert task.module.training and all(parameter.grad is None for parameter in task.module.parameters())
    assert task.events == [(what, step) for step in range(8) for what in ("loss", "after")]
    assert [int(path.name[5:13]) for path in checkpoints(tmp_path / "checkpoints")] == [6, 8]
    assert Run(tmp_path).metrics["learning_rate"][0] == [2, 5, 7]


def test_a_run_that_goes_on_repeats_the_draws_and_steps_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, part = run(Toy(), tmp_path / "whole"), Toy()

    def killed(module: nn.Module, batch: float, step: int) -> Mapping[str, Tensor]:
        if step == 5:
            raise KeyboardInterrupt
        return part.squares(module, batch, step)

    part.losses = killed
    with pytest.raises(KeyboardInterrupt):
        run(part, tmp_path / "part")
    torch.rand(7)
    tail = run(Toy(), tmp_path / "part")
    assert tail.events[0] == ("restore", 3) and tail.events[1] == ("loss", 3)
    assert len(set(whole.draws)) == 8 and tail.draws == whole.draws[3:] and weight(tail) == weight(whole)
    assert (tmp_path / "part" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_a_run_with_all_steps_done_is_finished_without_another(tmp_path: Path) -> None:
    run(Toy(), tmp_path)
    again = run(Toy(), tmp_path)
    assert again.events == [("restore", 8)] and again.finished


def test_scores_are_asked_for_when_due_and_not_at_the_end(tmp_path: Path) -> None:
    task = Toy()
    task.evaluate_every = 4
    run(task, tmp_path)
    assert [count for what, count in task.events if what == "evaluate"] == [4]
    assert Run(tmp_path).metrics["val/AP"] == ([3], [0.5])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_loss_stops_naming_step_and_terms_before_it_is_saved(broken: float, tmp_path: Path) -> None:
    def losses(module: nn.Module, batch: float, step: int) -> Mapping[str, Tensor]:
        term = next(module.parameters()).sum() * (broken if step == 5 else 1)
        return {"loss": term * 2, "term": term.detach(), "fine": torch.tensor(1.0)}

    with pytest.raises(UserError, match=r"stopped, step 5: loss = (nan|inf), term = (nan|inf); .* Lower the rate"):
        run(Toy(losses), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoints")
    assert state is not None and state["step"] == 3


def test_gradients_are_clipped_where_asked(tmp_path: Path) -> None:
    task = run(Toy(clip_norm=0.01), tmp_path)
    moved = sum(0.5 * 0.1 / (step + 1) * 0.01 for step in range(8))
    assert 1 - weight(task) == pytest.approx(moved, rel=1e-3)


class Regression(Toy):
    """Three clipped steps of a network without norms in float64, in micro-batches."""

    def __init__(self, accumulate: int) -> None:
        torch.manual_seed(0)
        images = [list(images) for images in torch.rand(3, 8, 3, 8, 8, dtype=torch.float64)]
        super().__init__(self.error, images, clip_norm=1.0)
        self.micro_batches = MicroBatches(8, accumulate)
        self.calls: list[tuple[int, int]] = []
        self.rates: list[int] = []

    def build(self, fresh: bool) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 4)).double()
        self.optimizer = SGD(self.module.parameters(), lr=1.0, momentum=0.9)

    def learning_rate(self, step: int) -> float:
        self.rates.append(step)
        return 0.01 / (step + 1)

    def error(self, module: nn.Module, batch: list[Tensor], step: int) -> Mapping[str, Tensor]:
        self.calls.append((step, len(batch)))
        images = torch.stack(batch)
        squares = (module(images) - images.sum((1, 2, 3))[:, None]).square()
        return {"loss": squares.mean(), "largest": squares.detach()[:, 0].mean()}


def test_a_batch_in_parts_is_the_whole_batch_for_weights_rates_and_metrics(tmp_path: Path) -> None:
    whole, parted = Regression(1), Regression(4)
    run(whole, tmp_path / "whole")
    run(parted, tmp_path / "parts")
    assert whole.calls == [(0, 8), (1, 8), (2, 8)]
    assert parted.calls == [(step, 2) for step in (0, 1, 2) for _ in range(4)]
    assert parted.rates == whole.rates == [0, 1, 2]
    ours, theirs = dict(parted.module.state_dict()), dict(whole.module.state_dict())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    metrics, expected = Run(tmp_path / "parts").metrics, Run(tmp_path / "whole").metrics
    assert metrics.keys() == expected.keys() == {"loss", "largest", "learning_rate", "gradient_norm"}
    for name, (steps, values) in expected.items():
        assert metrics[name][0] == steps == [2]
        assert metrics[name][1] == pytest.approx(values, rel=1e-12)


def test_processes_wait_for_gradients_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric, task = Fabric(accelerator="cpu", devices=1), Toy(batches=[[1.0, 1.0, 1.0]] * 8)
    task.micro_batches = MicroBatches(3, 3)
    task.losses = lambda module, batch, step: task.squares(module, batch[0], step)
    skipped: list[bool] = []
    without = fabric.no_backward_sync

    def watched(module: nn.Module, enabled: bool = True) -> object:
        skipped.append(enabled)
        return without(module, enabled)  # type: ignore[arg-type]

    monkeypatch.setattr(fabric, "no_backward_sync", watched)
    run(task, tmp_path, fabric)
    assert skipped == [True, True, False] * 8


def test_half_precision_skips_overflows_and_measures_gradients_without_their_scale(tmp_path: Path) -> None:
    weights = []

    class Half(Toy):
        def build(self, fresh: bool) -> None:
            super().build(fresh)
            self.optimizer = SGD(self.module.parameters(), lr=99.0)

        def learning_rate(self, step: int) -> float:
            return 0.1

    def losses(module: nn.Module, batch: float, step: int) -> Mapping[str, Tensor]:
        parameter = next(module.parameters())
        weights.append(parameter.item())
        return {"loss": parameter.sum() * batch}

    def half() -> Fabric:
        return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))

    batches = [3.0, 1e35, 3.0, 3.0]  # times the scale, 65536, more than float32 holds
    task = Half(losses, batches)
    object.__setattr__(task.recipe, "checkpoint_every", 1)
    run(task, tmp_path, half())
    assert weights == pytest.approx([1, 0.7, 0.7, 0.4])
    metrics = Run(tmp_path).metrics
    assert metrics["loss_scale"][1] == [65536, 65536, 32768, 32768]
    assert metrics["gradient_norm"][1] == pytest.approx([3, float("inf"), 3, 3])
    again, longer = half(), Half(losses, [*batches, 3.0])
    run(longer, tmp_path, again)
    assert longer.events[0] == ("restore", 4) and Run(tmp_path).metrics["loss_scale"][1][-1] == 32768
