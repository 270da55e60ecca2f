"""Two processes train as one does, and whatever stops a run, it goes on."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FINETUNE, PRETRAIN, finetuning, in_process, pretraining, wait_for

from boxless import cli
from boxless.errors import Unfinished, UserError
from boxless.launch import Processes
from boxless.methods.soco import SoCoConfig
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run
from boxless.tasks import finetune as finetuning_file
from boxless.tasks import pretrain as pretraining_file
from boxless.tasks.schedule import PretrainSchedule, check_divides, rates_in_words
from boxless.training.device import training_fabric, worker_count
from boxless.training.distributed import check_same, on_rank_zero, rank_zero_first
from boxless.training.signals import stoppable

ALIKE = {"trunk.norm": "sync", "min_size": (80,), "batch_size": 4, "iterations": 6, "checkpoint_every": 2}
"""Fine-tuning that does not depend on the processes: images of one size, norms over all of them."""
RETINANET = {"detector.kind": "retinanet"}
SOCO = {"method.empty_places": "copies", "method.small_size": 48}
"""V3 of 24 px would have one cell at C5: statistics of four values blow rounding up a thousandfold."""
RUNS: dict[str, Any] = {
    "byol": lambda scenes, out: pretraining(scenes, out, "byol"),
    "soco": lambda scenes, out: pretraining(scenes, out, "soco", **SOCO),
    "moco": lambda scenes, out: pretraining(scenes, out, "moco", **{"method.norm_groups": 2, "epochs": 2}),
    "retinanet": lambda scenes, out: finetuning(scenes, out, **ALIKE, **RETINANET),
    "self_training": lambda scenes, out: finetuning(
        scenes, out, unlabelled=str(scenes / "images" / "unlabelled"), **ALIKE, **RETINANET
    ),
}
"""Runs whose curves must not depend on the number of processes."""
SAMPLED = {"batch_size": 4, "accumulate": 2, "iterations": 3, "evaluate_every": 2}
"""Faster R-CNN draws anchors and boxes in each process: it shall run, and stay one detector."""


def both(free_port: int, function: Any, *arguments: Any) -> list[Any]:
    """Start a function in two processes that know of each other as torchrun tells them."""
    started = []
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    for rank in range(2):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(in_process(_as_rank, environment, function, *arguments))
    return started


def _as_rank(environment: Mapping[str, str], function: Any, *arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Unfinished as stop:
        sys.exit(stop.exit_code)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def train_all(scenes: Path, out: Path) -> None:
    """All runs one after the other, and the weights that this process ends with."""
    training_fabric("32-true")
    told = []
    for what in (lambda: check_same("data", os.environ["RANK"]), lambda: on_rank_zero(_fail)):
        try:
            what()
        except UserError as error:
            told.append(str(error))
    order = rank_zero_first(lambda: os.environ["RANK"])
    ended: dict[str, Any] = {"told": told, "order": order}
    for file in (pretraining_file, finetuning_file):
        file.fit = _keeping(file.fit, ended)  # type: ignore[attr-defined]
    for name, run in {**RUNS, "faster_rcnn": lambda scenes, out: finetuning(scenes, out, **SAMPLED)}.items():
        run(scenes, out / name)
        ended[name] = ended.pop("last")
    torch.save(ended, out / f"{os.environ['RANK']}.pt")


def _fail() -> None:
    raise UserError("no such file")


def _keeping(train: Any, ended: dict[str, Any]) -> Any:
    def wrapped(task: Any, *arguments: Any) -> None:
        train(task, *arguments)
        ended["last"] = [parameter.detach().clone() for parameter in task.module.parameters()]

    return wrapped


@pytest.fixture(scope="module")
def pair(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done all runs."""
    out = tmp_path_factory.mktemp("pair")
    processes = both(free_port(), train_all, scenes, out)
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0, 0]
    return out


@pytest.fixture(scope="module")
def lone(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which this process has done all runs."""
    out = tmp_path_factory.mktemp("lone")
    for name, run in RUNS.items():
        run(scenes, out / name)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns(name: str, pair: Path, lone: Path) -> None:
    alone = Run(lone / name).metrics
    together = Run(pair / name).metrics
    assert alone.keys() == together.keys()
    for key, (steps, values) in alone.items():
        same, others = together[key]
        assert same == steps
        assert others[0] == pytest.approx(values[0], rel=1e-4, abs=2e-5), key
        assert others == pytest.approx(values, rel=2e-2, abs=1e-3), key  # rounding grows tenfold in two steps


def test_processes_end_with_the_same_weights(pair: Path) -> None:
    first, second = (torch.load(pair / f"{rank}.pt") for rank in range(2))
    for name in (*RUNS, "faster_rcnn"):
        assert all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True)), name
    assert Run(pair / "faster_rcnn").finished
    assert {"val/AP", "loss_box_reg"} <= Run(pair / "faster_rcnn").metrics.keys()


def test_processes_fail_together_and_take_turns(pair: Path) -> None:
    for rank in range(2):
        kept = torch.load(pair / f"{rank}.pt")
        host = socket.gethostname()
        assert kept["told"][0].startswith(f"data: process 0 on {host} sees 0, process 1 on {host} 1")
        assert kept["told"][1] == "no such file" and kept["order"] == str(rank)


def test_one_terminated_process_stops_both_and_one_goes_on(scenes: Path, tmp_path: Path, pair: Path) -> None:
    out = tmp_path / "run"
    more = {"checkpoint_every": 2}
    processes = both(free_port(), _pretraining, scenes, out, more)
    wait_for(lambda: list(out.glob("checkpoints/step-*.pt")), processes[0], 900)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [75, 75] and not Run(out).finished
    resumed = pretraining(scenes, out, "byol", **more).metrics
    _, whole = Run(pair / "byol").metrics["loss"]
    assert resumed["loss"][1][-1] == pytest.approx(whole[-1], rel=0.2)  # another mean: steps since the last checkpoint
    theirs, ours = load_file(pair / "byol" / "weights.safetensors"), load_file(out / "weights.safetensors")
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def _pretraining(scenes: Path, out: Path, changes: dict[str, Any]) -> None:
    pretraining(scenes, out, "byol", **changes)


def _command(words: list[str], said: Path) -> None:
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it has data workers of its own
    with said.open("w") as sys.stderr:
        code = cli.main(words)
    sys.exit(code)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_sigterm_ends_after_a_step_with_all_of_it_kept(command: str, scenes: Path, lone: Path, tmp_path: Path) -> None:
    labels = scenes / "annotations"
    given = {
        "pretrain": ({"data": scenes / "images" / "unlabelled", "recipe": "byol-r50"}, {**PRETRAIN, "workers": 1}),
        "finetune": ({"data": labels / "train.json", "val": labels / "val.json"}, {**FINETUNE, **ALIKE, **RETINANET}),
    }[command]
    flags = [word for key, value in {**given[0], **given[1]}.items() for word in (f"--{key}", _spelt(value))]
    out, said = tmp_path / "run", tmp_path / "said"
    words = [command, *flags, "--out", str(out)]
    process = in_process(_command, words, said)
    wait_for(lambda: list(out.glob("checkpoints/step-*.pt")), process, 900)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == (command == "pretrain")
    for pid in (process.pid, *map(int, workers)):  # as SLURM does
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
    process.join(900)
    assert process.exitcode == 75, said.read_text()
    assert re.search(r"stopped by SIGTERM; \d of \d steps are kept, repeat the command", said.read_text())
    assert cli.main(words) == 0
    undisturbed = lone / {"pretrain": "byol", "finetune": "retinanet"}[command]
    ours, theirs = (load_file(Run(folder).weights) for folder in (out, undisturbed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _spelt(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_torchrun_is_terminated_and_goes_on(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [word for key, value in PRETRAIN.items() for word in (f"--{key}", _spelt(value))]
    words = ["pretrain", "--data", str(scenes / "images" / "unlabelled"), "--out", str(out), "--recipe", "byol-r50"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "boxless"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*launcher, *words, *flags], stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not list(out.glob("checkpoints/step-*.pt")):
            assert process.poll() is None, (tmp_path / "said").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(900) != 0
    text = (tmp_path / "said").read_text()
    assert "2 processes x 2 images = batch 4; peak rate 0.0046875 = 0.3 x 4 / 256" in text
    assert text.count("steps are kept, repeat the command to continue") == 1
    assert not Run(out).finished and cli.main([*words, *flags]) == 0 and Run(out).finished


def test_processes_are_those_that_the_launcher_tells_of() -> None:
    assert Processes.of({}) == Processes.of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Processes()
    torchrun = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}
    torchrun |= {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}
    assert Processes.of(torchrun) == Processes("torchrun", 5, 8, 4) and Processes.of(torchrun).machines == 2
    srun = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    assert Processes.of(srun) == Processes("srun", 5, 8, 4)
    with pytest.raises(UserError, match=r"without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start .* with torchrun"):
        Processes.of({"WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="8 tasks, but not how many on each machine; give --ntasks-per-node"):
        Processes.of({"SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(UserError, match="4 of 6 processes on this machine; each must have the same number"):
        Processes.of({**torchrun, "WORLD_SIZE": "6"})


def test_data_workers_are_a_process_s_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    assert (worker_count(None, 16), worker_count(3, 16)) == (16, 3)
    for name, value in {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    assert worker_count(None, 16) == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert worker_count(None, 16) == 12


def test_batch_and_rate_are_those_of_all_processes() -> None:
    recipe = PretrainRecipe(SoCoConfig(), batch_size=16)
    assert PretrainSchedule.of(recipe, 1000, 2) == PretrainSchedule.of(recipe, 1000)
    assert PretrainSchedule.of(recipe, 15, 4).batch == 12
    assert rates_in_words(16, 1.0, 256, 2) == "2 processes x 8 images = batch 16; peak rate 0.0625 = 1.0 x 16 / 256"
    assert rates_in_words(8, 0.02, 16, 1) == "batch 8; peak rate 0.01 = 0.02 x 8 / 16"
    with pytest.raises(UserError, match="batch_size: 16 images cannot be divided evenly among 3 processes"):
        PretrainSchedule.of(recipe, 1000, 3)
    with pytest.raises(UserError, match=r"evenly among 4 processes x 8 parts \(accumulate\)"):
        check_divides(FinetuneRecipe().batch_size, 4, 8)


def test_commands_that_work_alone_refuse_to_be_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    assert cli.main(["propose", "--data", "x", "--out", "y"]) == 2
    assert "torchrun started 2 processes of boxless propose, which works as one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "array", "answer", "queued", "told"),
    [
        (signal.SIGUSR1, {}, 0, "requeue 41", "job 41 is back in the queue"),
        (
            signal.SIGUSR1,
            {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"},
            0,
            "requeue 40_3",
            "job 40_3 is back in the queue",
        ),
        (signal.SIGUSR1, {}, 1, "requeue 41", "job 41: not permitted"),
        (signal.SIGTERM, {}, 0, "", ""),
    ],
)
def test_slurm_job_goes_back_into_the_queue_before_its_time_is_up(
    sent: signal.Signals,
    array: dict[str, str],
    answer: int,
    queued: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f"#!/bin/sh\necho $@ > {tmp_path}/asked\n[ {answer} = 0 ] || echo not permitted >&2\nexit {answer}\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "41", **array}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(sent)
    with pytest.raises(Unfinished, match=f"stopped by {sent.name}") as stop, stoppable():
        signal.raise_signal(sent)
    assert stop.value.exit_code == 75 and signal.getsignal(sent) is before
    asked = tmp_path / "asked"
    assert (asked.read_text().strip() if asked.exists() else "") == queued
    assert told in capsys.readouterr().err
