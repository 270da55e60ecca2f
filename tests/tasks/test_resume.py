"""A run that is killed, broken or refused goes on as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import finetuning, in_process, pretraining, wait_for

from boxless.errors import UserError
from boxless.files import lock
from boxless.runs.run import Run, start_run


def same_results(run: Run, undisturbed: Run) -> None:
    ours, theirs = load_file(run.weights), load_file(undisturbed.weights)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert (run.path / "metrics.csv").read_text() == (undisturbed.path / "metrics.csv").read_text()
    timing = ("seconds", "images_per_second")
    assert {k: v for k, v in run.summary.items() if k not in timing} == {
        k: v for k, v in undisturbed.summary.items() if k not in timing
    }


def killed_then_continued(
    command: Callable[..., Run], scenes: Path, out: Path, *arguments: str, **settings: object
) -> Run:
    """Kill the command at a random moment after its first checkpoint, and give it again."""
    process = in_process(partial(command, **settings), scenes, out, *arguments)
    wait_for(lambda: list(out.glob("checkpoints/step-*.pt")), process)
    delay = random.uniform(0, 0.3)
    time.sleep(delay)
    assert process.is_alive(), f"came to its end within {delay} s"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not Run(out).finished
    return command(scenes, out, *arguments, **settings)


@pytest.mark.parametrize("method", ["soco", "byol"])
def test_killed_pretraining_goes_on_bit_for_bit(method: str, scenes: Path, tmp_path: Path) -> None:
    undisturbed = pretraining(scenes, tmp_path / "whole", method)
    continued = killed_then_continued(pretraining, scenes, tmp_path / "killed", method)
    assert continued.finished and continued.summary["steps"] == undisturbed.summary["steps"] == 8
    same_results(continued, undisturbed)


AVERAGED = {"ema": 0.5, "augment.color": 1.0, "augment.zoom": (0.5, 2.0), "augment.until": 0.8}


@pytest.mark.parametrize("settings", [{}, {**AVERAGED, "augment.vertical_flip": True, "optim.schedule": "cosine"}])
def test_killed_finetuning_goes_on_bit_for_bit(settings: dict[str, object], scenes: Path, tmp_path: Path) -> None:
    undisturbed = finetuning(scenes, tmp_path / "whole", **settings)
    continued = killed_then_continued(finetuning, scenes, tmp_path / "killed", **settings)
    assert continued.finished and continued.summary["steps"] == undisturbed.summary["steps"]
    same_results(continued, undisturbed)


def test_changed_settings_of_a_started_run_are_refused_by_name(tmp_path: Path) -> None:
    recipe = "recipe: byol-small\nmethod:\n  momentum: 0.99\noptim:\n  momentum: 0.9\nworkers: 1\n"
    inputs = {"data": "a", "init": None}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe)
    start_run(tmp_path, recipe, inputs).close()
    start_run(tmp_path, recipe.replace("workers: 1", "workers: 4"), inputs).close()  # changes no number
    with pytest.raises(UserError, match=r"method\.momentum was 0\.99, is 0\.9.*restore these"):
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


def test_a_place_is_looked_at_before_boxes_are_searched(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no run of boxless"):
        pretraining(scenes, tmp_path / "mine", "soco")
    assert not list(tmp_path.glob("proposals*"))


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
        pretraining(scenes, out, "byol", weights=str(tmp_path / "nothing.pth"), **short)
    wrong = tmp_path / "wrong.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, wrong)
    with pytest.raises(UserError, match="of the backbone would be loaded") as kept:  # keeps its frames alive
        pretraining(scenes, out, "byol", weights=str(wrong), **short)
    with pytest.raises(UserError, match=r"step 0: loss = (nan|inf)|step 1: loss = (nan|inf)"):
        pretraining(scenes, out, "byol", **{"optim.name": "sgd", "optim.base_lr": 1e30}, **short)
    run = pretraining(scenes, out, "byol", **short)
    assert run.finished and kept.value is not None
    assert run.summary["steps"] == 2


def test_changes_are_made_when_told_and_said(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    broken_off(scenes, out, monkeypatch)
    longer = {"epochs": 5, "optim.weight_decay": 0.5}
    with pytest.raises(UserError, match=r"weight_decay was .*, is 0\.5; epochs was 4.0, is 5.0\); .*--allow-changes"):
        pretraining(scenes, out, "byol", **longer)
    with pytest.raises(UserError, match=r"checkpoint is of another network or optimizer .*give the settings back"):
        pretraining(scenes, out, "byol", allow_changes=True, **{"method.output": 8})
    capsys.readouterr()
    run = pretraining(scenes, out, "byol", allow_changes=True, **longer)  # the first try was the newest
    said = capsys.readouterr().err
    assert f"{out}: continuing although method.output was 8, is 16" in said and "epochs was 4.0, is 5.0" in said
    assert run.summary["steps"] == 10


def broken_off(scenes: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of eight steps that ended after its third."""
    from boxless.methods.byol import BYOL

    with monkeypatch.context() as patch:
        patch.setattr(BYOL, "after_step", lambda self, step, total: step >= 3 and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretraining(scenes, out, "byol")


def test_data_worker_that_dies_ends_a_run_with_one_line(scenes: Path, tmp_path: Path, whole: Run) -> None:
    from boxless.data.unlabelled import ViewDataset

    out = tmp_path / "run"
    sample = ViewDataset.__getitem__

    def deadly(self: ViewDataset, place: tuple[int, int]) -> object:
        if place[0] == 2 and os.getpid() != here:  # the third of four epochs
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(self, place)

    here = os.getpid()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewDataset, "__getitem__", deadly)
        with pytest.raises(UserError, match=r"a data worker died \(DataLoader worker .*repeat the command") as e:
            pretraining(scenes, out, "byol", workers=1)
    assert "\n" not in str(e.value)
    same_weights(pretraining(scenes, out, "byol", workers=2), whole)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A pretraining that nothing disturbed."""
    return pretraining(scenes, tmp_path_factory.mktemp("undisturbed") / "run", "byol")


def same_weights(run: Run, undisturbed: Run) -> None:
    ours, theirs = load_file(run.weights), load_file(undisturbed.weights)
    assert ours.keys() == theirs.keys() and [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_end_a_run_with_all_of_it_kept(
    workers: int, scenes: Path, tmp_path: Path, whole: Run
) -> None:
    from boxless.data import retry
    from boxless.data.unlabelled import ViewDataset

    out = tmp_path / "run"
    data = scenes / "images" / "unlabelled"
    sample = ViewDataset.__getitem__

    def vanishing(self: ViewDataset, place: tuple[int, int]) -> object:
        if place[0] == 2:
            with suppress(FileExistsError):  # once: a data worker may outlive the run
                (tmp_path / "vanished").mkdir()
                data.rename(data.with_name("unmounted"))
        return sample(self, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewDataset, "__getitem__", vanishing)
        patch.setattr(retry, "PATIENCE", 0.3)
        try:
            with pytest.raises(
                UserError, match=r"unlabelled: vanished, .*; \d of 8 steps are kept, repeat the command"
            ):
                pretraining(scenes, out, "byol", workers=workers)
        finally:
            data.with_name("unmounted").rename(data)
    same_weights(pretraining(scenes, out, "byol"), whole)


def test_full_disk_ends_a_run_with_one_line_and_it_goes_on(scenes: Path, tmp_path: Path, whole: Run) -> None:
    import resource

    out = tmp_path / "run"
    least = (whole.path / "metrics.csv").stat().st_size + 20_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, before[1]))
    try:
        with pytest.raises(UserError, match=r"run.*: cannot be written to \(File too large\); what was saved stays"):
            pretraining(scenes, out, "byol")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in out.rglob("*.partial")] == []
    same_weights(pretraining(scenes, out, "byol"), whole)


def test_locks_are_not_held_by_data_workers_that_outlive_a_run(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock", "it")
    heard, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(say, b"here")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(heard, 4)
        with pytest.raises(UserError, match=rf"it: process {os.getpid()} on .* is working on it"):
            lock(tmp_path / "lock", "it")
        held.close()
        lock(tmp_path / "lock", "it").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
