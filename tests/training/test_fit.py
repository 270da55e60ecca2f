from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn

from boxless.training.fit import Progress, kept_scale, restore_scale, train
from boxless.training.logger import Journal, read_metrics
from boxless.training.nan_guard import NonFiniteStep


class Loop:
    """Eight steps on w^2 from w = 1, with everything that happens written down."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.fabric = Fabric(accelerator="cpu", devices=1)
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        groups = [{"params": [module.weight], "lr_scale": 0.5}]
        self.module, self.optimizer = self.fabric.setup(module, torch.optim.SGD(groups, lr=99.0))
        self.progress = Progress(start, 8)
        self.journal = Journal(folder, start, 8, seed=1, images_per_step=1, every=4, quiet=True)
        self.events: list[tuple[str, int]] = []
        self.draws: list[float] = []

    def losses(self, batch: float, step: int) -> Mapping[str, Tensor]:
        self.events.append(("losses", step))
        self.draws.append(torch.rand(()).item())
        return {"loss": self.module.weight.square().sum() * batch}

    def run(self, losses: Callable[[float, int], Mapping[str, Tensor]] | None = None, **options: object) -> None:
        try:
            train(
                self.fabric,
                self.module,
                self.optimizer,
                [1.0] * (8 - self.progress.step),
                losses or self.losses,
                lambda step: 0.1 / (step + 1),
                self.progress,
                self.journal,
                lambda step: self.events.append(("after", step)),
                lambda: self.events.append(("save", self.progress.step)),
                3,
                **options,  # type: ignore[arg-type]
            )
        finally:
            self.journal.close()


def test_each_step_trains_once_at_its_rate_and_saves_when_due(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.module.eval()
    loop.run()
    weight = 1.0
    for step in range(8):
        weight -= 0.5 * 0.1 / (step + 1) * 2 * weight
    assert loop.module.weight.item() == pytest.approx(weight, rel=1e-6)
    assert loop.module.training and loop.module.weight.grad is None and loop.progress.step == 8
    assert loop.events[:4] == [("losses", 0), ("after", 0), ("losses", 1), ("after", 1)]
    assert [event for event in loop.events if event[0] == "save"] == [("save", 3), ("save", 6)]
    assert read_metrics(tmp_path)["learning_rate"][0] == [2, 3, 5, 7]


def test_random_draws_depend_on_the_step_alone(tmp_path: Path) -> None:
    whole, tail = Loop(tmp_path), Loop(tmp_path, start=5)
    whole.run()
    torch.rand(7)
    tail.run()
    assert len(set(whole.draws)) == 8 and tail.draws == whole.draws[5:]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_loss_stops_naming_step_and_terms_before_it_is_saved(broken: float, tmp_path: Path) -> None:
    loop = Loop(tmp_path)

    def losses(batch: float, step: int) -> Mapping[str, Tensor]:
        term = loop.module.weight.sum() * (broken if step == 5 else 1)
        return {"loss": term * 2, "term": term.detach(), "fine": torch.tensor(1.0)}

    with pytest.raises(NonFiniteStep, match=r"^step 5: loss = (nan|inf), term = (nan|inf)$"):
        loop.run(losses)
    assert [event for event in loop.events if event[0] == "save"] == [("save", 3)]


def test_gradients_are_clipped_where_asked(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run(clip_norm=0.01)
    moved = sum(0.5 * 0.1 / (step + 1) * 0.01 for step in range(8))
    assert 1 - loop.module.weight.item() == pytest.approx(moved, rel=1e-3)


def trained(folder: Path, parts: int) -> tuple[nn.Module, list[tuple[int, int]], list[int]]:
    """Three clipped steps of a network without norms in float64; the losses' calls and the rate's."""
    folder.mkdir()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 4)).double()
    images = torch.rand(3, 8, 3, 8, 8, dtype=torch.float64)
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9))
    calls, rates = [], []

    def losses(batch: Tensor, step: int) -> Mapping[str, Tensor]:
        calls.append((step, len(batch)))
        squares = (module(batch) - batch.sum((1, 2, 3))[:, None]).square()
        return {"loss": squares.mean(), "largest": squares.detach()[:, 0].mean()}

    def rate(step: int) -> float:
        rates.append(step)
        return 0.01 / (step + 1)

    def cut(batch: Tensor) -> Sequence[Tensor]:
        return batch.chunk(parts)

    journal = Journal(folder, 0, 3, seed=1, images_per_step=8, every=1, quiet=True)
    train(fabric, module, optimizer, images, losses, rate, Progress(0, 3), journal, clip_norm=1.0, parts=cut)
    journal.close()
    return network, calls, rates


def test_a_batch_in_parts_is_the_whole_batch_for_weights_rates_and_journal(tmp_path: Path) -> None:
    whole, whole_calls, whole_rates = trained(tmp_path / "whole", 1)
    parted, calls, rates = trained(tmp_path / "parts", 4)
    assert whole_calls == [(0, 8), (1, 8), (2, 8)] and calls == [(step, 2) for step in (0, 1, 2) for _ in range(4)]
    assert rates == whole_rates == [0, 1, 2]
    torch.testing.assert_close(dict(parted.state_dict()), dict(whole.state_dict()), rtol=1e-12, atol=1e-14)
    ours, theirs = read_metrics(tmp_path / "parts"), read_metrics(tmp_path / "whole")
    assert ours.keys() == theirs.keys() == {"loss", "largest", "learning_rate", "gradient_norm"}
    for name, (steps, values) in theirs.items():
        assert ours[name][0] == steps == [0, 1, 2]
        assert ours[name][1] == pytest.approx(values, rel=1e-12)


def test_processes_wait_for_gradients_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path)
    skipped: list[bool] = []
    without = loop.fabric.no_backward_sync

    def watched(module: nn.Module, enabled: bool = True) -> object:
        skipped.append(enabled)
        return without(module, enabled)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.fabric, "no_backward_sync", watched)
    loop.run(parts=lambda batch: (batch, batch, batch))
    assert skipped == [True, True, False] * 8


def test_half_precision_skips_overflows_and_measures_gradients_without_their_scale(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    module, optimizer = fabric.setup(linear, torch.optim.SGD(linear.parameters(), lr=99.0))
    weights = []

    def losses(batch: float, step: int) -> Mapping[str, Tensor]:
        weights.append(linear.weight.item())
        return {"loss": linear.weight.sum() * batch}

    journal = Journal(tmp_path, 0, 4, seed=1, images_per_step=1, every=1, quiet=True)
    batches = [3.0, 1e35, 3.0, 3.0]  # times the scale, 65536, more than float32 holds
    train(fabric, module, optimizer, batches, losses, lambda step: 0.1, Progress(0, 4), journal)
    journal.close()
    assert weights == pytest.approx([1, 0.7, 0.7, 0.4])
    metrics = read_metrics(tmp_path)
    assert metrics["loss_scale"][1] == [65536, 65536, 32768, 32768]
    assert metrics["gradient_norm"][1] == pytest.approx([3, float("inf"), 3, 3])
    again = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    restore_scale(again, kept_scale(fabric))
    assert kept_scale(again) == kept_scale(fabric) and kept_scale(again)["scale"]["scale"] == 32768
    assert kept_scale(Fabric(accelerator="cpu", devices=1)) == {}
