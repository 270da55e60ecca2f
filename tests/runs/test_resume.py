"""A run that is killed, broken or refused goes on as if nothing had happened."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import finetuning, in_process, pretraining, wait_for

from boxless.errors import UserError
from boxless.runs.folder import Run, start_run


def same_results(run: Run, undisturbed: Run) -> None:
    ours, theirs = load_file(run.weights), load_file(undisturbed.weights)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert (run.path / "metrics.csv").read_text() == (undisturbed.path / "metrics.csv").read_text()
    timing = ("seconds", "images_per_second")
    assert {k: v for k, v in run.summary.items() if k not in timing} == {
        k: v for k, v in undisturbed.summary.items() if k not in timing
    }


def killed_then_continued(command: Callable[..., Run], scenes: Path, out: Path, *arguments: str) -> Run:
    """Kill the command at a random moment after its first checkpoint, and give it again."""
    process = in_process(command, scenes, out, *arguments)
    wait_for(lambda: list(out.glob("checkpoints/step-*.pt")), process)
    delay = random.uniform(0, 0.3)
    time.sleep(delay)
    assert process.is_alive(), f"came to its end within {delay} s"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not Run(out).finished
    return command(scenes, out, *arguments)


@pytest.mark.parametrize("method", ["soco", "byol"])
def test_killed_pretraining_goes_on_bit_for_bit(method: str, scenes: Path, tmp_path: Path) -> None:
    undisturbed = pretraining(scenes, tmp_path / "whole", method)
    same_results(killed_then_continued(pretraining, scenes, tmp_path / "killed", method), undisturbed)


def test_killed_finetuning_goes_on_bit_for_bit(scenes: Path, tmp_path: Path) -> None:
    undisturbed = finetuning(scenes, tmp_path / "whole")
    same_results(killed_then_continued(finetuning, scenes, tmp_path / "killed"), undisturbed)


def test_changed_settings_of_a_started_run_are_refused_by_name(tmp_path: Path) -> None:
    recipe = "recipe: x\nmethod:\n  momentum: 0.99\noptim:\n  momentum: 0.9\nworkers: 1\n"
    inputs = {"data": "a", "init": None}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe)
    start_run(tmp_path, recipe, inputs).close()
    start_run(tmp_path, recipe.replace("workers: 1", "workers: 4"), inputs).close()  # changes no number
    with pytest.raises(UserError, match=r"method\.momentum was 0\.99, is 0\.9.*give these back"):
        start_run(tmp_path, recipe.replace("0.99", "0.9"), inputs)  # optim has the very same line
    with pytest.raises(UserError, match="data was a, is b"):
        start_run(tmp_path, recipe, {**inputs, "data": "b"})
    start_run(tmp_path, recipe, inputs).close()  # a refusal changes nothing and keeps no lock


def test_other_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no run of boxless"):
        start_run(tmp_path, "recipe: x\n", {})
    with pytest.raises(UserError, match="is a file"):
        start_run(tmp_path / "thesis.txt", "recipe: x\n", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_process_is_refused_while_the_first_works(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = in_process(pretraining, scenes, out, "byol")
    wait_for((out / "environment.json").exists, process)
    with pytest.raises(UserError, match="is working on it"):
        pretraining(scenes, out, "byol")
    assert process.is_alive()
    process.kill()
    process.join()
    start_run(out, (out / "recipe.yaml").read_text(), {}).close()  # the kernel has freed the lock


def test_failed_first_try_does_not_block_the_corrected_one(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = {"epochs": 1, "checkpoint_every": 100}
    with pytest.raises(UserError, match="no such file"):
        pretraining(scenes, out, "byol", init=str(tmp_path / "nothing.pth"), **short)
    wrong = tmp_path / "wrong.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, wrong)
    with pytest.raises(UserError, match="of the backbone would be loaded") as kept:  # keeps its frames alive
        pretraining(scenes, out, "byol", init=str(wrong), **short)
    with pytest.raises(UserError, match=r"step 0: loss = (nan|inf)|step 1: loss = (nan|inf)"):
        pretraining(scenes, out, "byol", **{"optim.name": "sgd", "optim.base_lr": 1e30}, **short)
    run = pretraining(scenes, out, "byol", **short)
    assert run.finished and kept.value is not None
    assert run.summary["steps"] == 2
