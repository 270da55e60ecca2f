"""A step that is not finite: caught before it moves a weight, kept, and taken again."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import pretraining
from torch import Tensor

import boxless
from boxless.cli import main
from boxless.errors import UserError
from boxless.losses import byol_loss
from boxless.methods import byol
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.pretrain import PretrainTask
from boxless.training.device import make_fabric

SGD = {"optim.name": "sgd", "optim.base_lr": 1e30, "optim.warmup_epochs": 0, "health_every": 100}


@pytest.fixture(scope="module")
def exploded(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose learning rate makes weights without measure, and what it said."""
    out = tmp_path_factory.mktemp("exploded") / "run"
    with pytest.raises(UserError) as caught:
        pretraining(scenes, out, "byol", **SGD)
    return out, str(caught.value)


def test_step_and_file_are_named(exploded: tuple[Path, str]) -> None:
    out, said = exploded
    (file,) = out.glob("replay-step-*.safetensors")
    assert said.startswith(f"{out}: stopped, step {int(file.stem.rpartition('-')[2])}: loss = nan;")
    assert said.endswith(f"boxless pretrain --replay {file}") and "\n" not in said


def test_kept_step_holds_the_state_before_it_and_the_batch_as_cut(exploded: tuple[Path, str], scenes: Path) -> None:
    (file,) = exploded[0].glob("replay-step-*.safetensors")
    kept = load_file(file)
    assert kept["view/0/image"].dtype == torch.uint8 and kept["view/0/image"].shape == (4, 3, 48, 48)
    assert kept["view/1/from_source"].shape == (4, 2, 3)
    step = int(file.stem.rpartition("-")[2])
    assert step == 1  # the first update is too large already
    task = PretrainTask(load(exploded[0] / "recipe.yaml", PretrainRecipe), make_fabric("32-true"), exploded[0])
    task.build()
    module = {name.removeprefix("module/"): value for name, value in kept.items() if name.startswith("module/")}
    before = dict(task.module.named_parameters())
    assert all(module[name].isfinite().all() for name in before)
    assert not torch.equal(module["projector.0.weight"], before["projector.0.weight"])
    assert torch.equal(module["target_projector.0.weight"] * 0, before["projector.0.weight"] * 0)


def test_replay_says_where_it_began(exploded: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = exploded[0].glob("replay-step-*.safetensors")
    assert main(["pretrain", "--replay", str(file)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "step 1 again in float32: the first that is not finite is the output of encoder.layer1.0.conv1, of a "
    )


def test_gradient_is_caught_and_its_loss_named(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flat(prediction: Tensor, target: Tensor) -> Tensor:
        return byol_loss(prediction, target) + (prediction * 0).sum().sqrt()

    monkeypatch.setattr(byol, "byol_loss", flat)
    with pytest.raises(UserError, match="stopped, step 0: gradient_norm = nan;"):
        pretraining(scenes, tmp_path / "run", "byol")
    file = tmp_path / "run" / "replay-step-00000000.safetensors"
    boxless.pretrain(replay=str(file))
    said = capsys.readouterr().out
    assert "is a gradient: Function 'MulBackward0' returned nan values" in said and "at boxless/methods/byol.py" in said
    monkeypatch.undo()
    boxless.pretrain(replay=str(file))
    assert "all is finite, where the run had step 0: gradient_norm = nan" in capsys.readouterr().out


def test_what_is_no_kept_step_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    for name in ("x.safetensors", "y.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=rf"--replay .*{name}: .*replay-step-N"):
            boxless.pretrain(replay=str(tmp_path / name))
    with pytest.raises(UserError, match="pretrain needs --data and --out"):
        boxless.pretrain()


def test_one_kept_step_a_run(exploded: tuple[Path, str], scenes: Path) -> None:
    """Given again, a run without a checkpoint meets the same step, and keeps it once."""
    out, said = exploded
    with pytest.raises(UserError) as caught:
        pretraining(scenes, out, "byol", **SGD)
    assert str(caught.value) == said and len(list(out.glob("replay-*"))) == 1
    with safe_open(next(out.glob("replay-*")), "pt") as file:
        assert file.metadata()["processes"] == "1"
