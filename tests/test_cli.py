import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import boxless
from boxless.cli import COMMANDS, main
from boxless.errors import UserError
from boxless.recipes import load as catalogue
from boxless.recipes import schema
from boxless.recipes.overrides import override


@dataclass(frozen=True)
class Optim:
    base_lr: float = 0.1
    """Learning rate for a batch of 256."""


@dataclass(frozen=True)
class Recipe:
    optim: Optim = field(default_factory=Optim)
    epochs: int = 100
    seed: int = 5
    fast: bool = False


calls: list[dict[str, Any]] = []


def pretrain(
    data: str | Path | Sequence[str | Path],
    recipe: str = "small",
    out: Path = Path("runs"),
    label_fraction: float = 1.0,
    seeds: Sequence[int] = (0,),
    device: Literal["auto", "cpu"] = "auto",
    resume: bool = False,
    seed: int | None = None,
    **overrides: Any,
) -> "Missing":  # type: ignore[name-defined] # noqa: F821 (a return type that only checkers import)
    """Pretrain on images.

    Some 100 % more.

    Args:
        data: Folder, list or shard;
            may be given several times.
        recipe: Name or file.
    """
    recipe_ = override(Recipe(), overrides)
    calls.append({**locals(), "recipe_": recipe_})


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the heaviest command, with every kind of argument, and its one recipe."""
    monkeypatch.setitem(COMMANDS, "pretrain", pretrain)
    monkeypatch.setattr(catalogue, "_recipes_beside", lambda name: {"small": Recipe()})
    monkeypatch.setattr(schema, "PretrainRecipe", Recipe)
    calls.clear()


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a wrong command line; return its one line on stderr."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("boxless: error: ") and err.count("\n") == 1
    return err


def test_flags_become_typed_arguments() -> None:
    argv = ["pretrain", "--data", "a", "b", "--label_fraction=0.5", "--seeds", "1", "2", "--resume", "--data", "c"]
    assert main([*argv, "--out", "x", "--optim.base-lr", "0.2", "--epochs=3", "--fast"]) == 0
    (call,) = calls
    assert call["data"] == ["a", "b", "c"] and call["label_fraction"] == 0.5 and list(call["seeds"]) == [1, 2]
    assert call["resume"] is True and call["out"] == Path("x") and call["device"] == "auto"
    assert call["recipe_"] == Recipe(Optim(0.2), epochs=3, fast=True)


def test_one_value_where_several_may_stand_and_commas() -> None:
    assert main(["pretrain", "--data", "a,b", "--seeds", "1,2", "--resume", "false", "--seed", "1"]) == 0
    (call,) = calls
    assert call["data"] == "a,b" and list(call["seeds"]) == [1, 2] and call["resume"] is False
    assert call["seed"] == 1 and call["recipe_"].seed == 5  # the command's own flag goes before the recipe's key


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretain"], "unknown command 'pretain': did you mean 'pretrain'?"),
        (["pretrain", "--data", "a", "--optim.lr", "3"], "unknown flag '--optim.lr': did you mean '--optim.base_lr'?"),
        (["pretrain", "--data", "a", "--lr=3"], "unknown flag '--lr': did you mean '--optim.base_lr'?"),
        (["pretrain", "--data", "a", "--lable_fraction", "3"], "did you mean '--label-fraction'?"),
        (["pretrain", "a"], "pretrain needs --data"),
        (["pretrain", "--dat", "x"], "unknown flag '--dat': did you mean '--data'"),
        (["statistics", "a", "--data", "b"], "unexpected 'a'"),
        (["pretrain", "--data", "a", "--label-fraction", "1", "2"], "unexpected '2'"),
        (["pretrain", "--data", "a", "--"], "unknown flag '--'"),
        (["pretrain", "--data"], "--data: expected at least one argument"),
        (["pretrain", "--data", "a", "--label-fraction", "half"], "--label-fraction: expected float, got 'half'"),
        (["pretrain", "--data", "a", "--device", "tpu"], "--device: expected auto|cpu, got 'tpu'"),
        (["pretrain", "--data", "a", "--epochs", "few"], "epochs: expected int, got 'few'"),
        (["pretrain", "--data", "a", "--recipe", "big"], "unknown recipe 'big'"),
        (["recipes", "--name", "nothing-like-it"], "unknown recipe 'nothing-like-it'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in refused(capsys, *argv)
    assert not calls


def test_help_shows_arguments_and_the_keys_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "Pretrain on images. Some 100 % more." in words
    assert "--data str ... Folder, list or shard; may be given several times. (required)" in words
    assert "--label-fraction float (default 1.0)" in words
    assert "recipe: optim: --optim.base_lr float Learning rate for a batch of 256. (default 0.1)" in words
    assert not calls


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    listed = [name for name in COMMANDS if f"\n  {name} " in out]
    assert listed == list(COMMANDS)
    assert out.endswith(f"boxless {boxless.__version__}\n")


@pytest.mark.parametrize(
    ("error", "code", "shown", "traceback"),
    [
        (UserError("x.json: no\nimages"), 2, "boxless: error: x.json: no images\n", False),
        (KeyboardInterrupt(), 130, "boxless: interrupted\n", False),
        (RuntimeError("gone"), 1, "please report it", True),
        (
            PermissionError(13, "Permission denied", "/x/y"),
            2,
            "boxless: error: /x/y: cannot be used (Permission",
            False,
        ),
        (PermissionError(13, "of a semaphore, which has no path"), 1, "please report it", True),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    shown: str,
    traceback: bool,
) -> None:
    def fail(data: str) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "statistics", fail)
    assert main(["statistics", "--data", "a"]) == code
    err = capsys.readouterr().err
    assert shown in err and ("Traceback" in err) == traceback


def test_a_reader_that_went_away_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "boxless", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_words_before_the_first_flag_are_a_name_of_a_recipe_or_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["recipes", "small"]) == 0
    assert "recipe: small\noptim:\n" in capsys.readouterr().out
    shown: list[object] = []
    monkeypatch.setitem(COMMANDS, "report", lambda run, quiet=False: shown.append(run))
    assert main(["report", "a", "b", "--quiet"]) == 2  # it takes one
    COMMANDS["report"].__signature__ = inspect.signature(boxless.report)  # type: ignore[attr-defined]
    assert main(["report", "a", "b", "--quiet"]) == 0 and shown == [["a", "b"]]


def test_a_flag_given_again_counts_the_last_time() -> None:
    assert main(["pretrain", "--data", "a", "--epochs", "2", "--epochs", "4", "--label-fraction=-1", "--resume"]) == 0
    assert calls[0]["recipe_"].epochs == 4 and calls[0]["label_fraction"] == -1 and calls[0]["resume"] is True


def test_weights_by_their_former_name_are_taken_with_one_line_of_advice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name, flags in {
        "pretrain": ["--data", str(tmp_path), "--out", str(tmp_path / "run")],
        "finetune": ["--data", "a", "--val", "b", "--out", str(tmp_path / "run")],
        "compare": ["--data", "a", "--labels", "b", "--val", "c", "--out", str(tmp_path / "run")],
    }.items():
        assert main([name, *flags, "--init", str(tmp_path / "no.pth")]) == 2
        advice, error = capsys.readouterr().err.splitlines()
        assert advice == "boxless: init is now called weights" and "no.pth" in error
    assert main(["propose", "--data", "a", "--out", "b", "--init", "c"]) == 2
    assert "unknown flag '--init'" in capsys.readouterr().err


def test_the_command_recipes_keeps_its_name_beside_the_package() -> None:
    assert catalogue.load("small", Recipe) == Recipe()
    assert boxless.recipes is sys.modules["boxless.commands.recipes"].recipes
