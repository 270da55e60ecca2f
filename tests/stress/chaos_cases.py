"""The commands that chaos.py disturbs: on little data, what they write, and processes to disturb them in."""

import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxless import cli
from boxless.data.scenes import make_scenes

TRUNK = {"trunk.backbone": "resnet18", "trunk.fpn_channels": 16, "trunk.box_head_width": 32, "precision": "32-true"}
PRETRAIN = {
    **TRUNK,
    "method.size": 48,
    "method.hidden": 32,
    "method.output": 16,
    "batch_size": 4,
    "epochs": 4,
    "checkpoint_every": 2,
    "optim.warmup_epochs": 1,
}
FINETUNE = {
    "recipe": "faster-rcnn-fpn",
    **TRUNK,
    "batch_size": 2,
    "iterations": 8,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "min_size": "64,80",
    "max_size": 96,
    "detector.rpn_samples": 32,
    "detector.rpn_proposals": 30,
    "detector.roi_samples": 16,
}
COMPARE = {
    "pretrain.trunk.backbone": "resnet18",
    "pretrain.trunk.fpn_channels": 16,
    "pretrain.trunk.box_head_width": 32,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 4,
    "pretrain.workers": 0,
    "pretrain.checkpoint_every": 1,
    "view_size": 32,
    "finetune.iterations": 3,
    "finetune.batch_size": 2,
    "finetune.checkpoint_every": 1,
    "finetune.min_size": 48,
    "finetune.max_size": 48,
    "finetune.workers": 0,
}

Words = list[str]


@dataclass(frozen=True)
class Case:
    """A command: `words(data, out)` is its line without workers, `result(out)` what it must leave alike."""

    name: str
    data: Path
    words: Callable[[Path, Path], Words]
    result: Callable[[Path], dict[str, Any]]

    def line(self, out: Path, data: Path | None = None, **more: object) -> Words:
        """Its words, with further flags."""
        return [*self.words(data or self.data, out), *_flags(more)]


def cases(room: Path) -> dict[str, Case]:
    """All of them; data that is made lies in `room`, photographs are those of BOXLESS_DATA."""
    scenes = room / "scenes"
    in_fork(lambda: make_scenes(scenes, unlabelled=8, train=4, val=2, size=80))
    shared = Path(os.environ.get("BOXLESS_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco256" / "images"
    photos = shared if shared.is_dir() else scenes / "images"

    def labelled(data: Path) -> Words:
        return _flags({"val": data / "annotations" / "val.json"})

    def pretrain(data: Path, out: Path) -> Words:
        place = data / "images" / "unlabelled" if (data / "annotations").is_dir() else data
        return ["pretrain", *_flags({"data": place, "out": out, "recipe": "byol-r50", **PRETRAIN})]

    def finetune(data: Path, out: Path) -> Words:
        return [
            "finetune",
            *_flags({"data": data / "annotations" / "train.json", "out": out, **FINETUNE}),
            *labelled(data),
        ]

    def compare(data: Path, out: Path) -> Words:
        given = {"data": data / "images" / "unlabelled", "labels": data / "annotations" / "train.json", "out": out}
        own = {"methods": "none,byol", "label_fraction": 1.0, "seeds": 1}
        return ["compare", *_flags({**given, **own, **COMPARE}), *labelled(data)]

    def propose(data: Path, out: Path) -> Words:
        return ["propose", *_flags({"data": data, "out": out / "p.parquet", "max_side": 64})]

    def pack(data: Path, out: Path) -> Words:
        return ["pack", *_flags({"data": data, "out": out, "shard_mb": 1})]

    made = (
        Case("pretrain", scenes, pretrain, weights),
        Case("finetune", scenes, finetune, weights_and_scores),
        Case("propose", photos, propose, content),
        Case("pack", photos, pack, content),
        Case("compare", scenes, compare, weights_and_table),
    )
    return {case.name: case for case in made}


def in_fork(action: Callable[[], object]) -> None:
    """Do something in a process of its own: OpenCV's threads, once started, would make later forks hang."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _flags(settings: Mapping[str, object]) -> Words:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def content(out: Path) -> dict[str, Any]:
    """All files of a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def weights(out: Path) -> dict[str, Any]:
    """All weights below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("weights.safetensors"))}


def weights_and_scores(out: Path) -> dict[str, Any]:
    """Weights, and what they were measured at."""
    return {**weights(out), "scores": json.loads((out / "summary.json").read_text())["scores"]}


def weights_and_table(out: Path) -> dict[str, Any]:
    """Weights, and the table of a comparison without its seconds."""
    with (out / "comparison.csv").open() as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return {**weights(out), "table": rows}


@dataclass
class Started:
    """A command in a process of its own; `code` once it has ended, negative for a signal."""

    pid: int
    log: Path
    code: int | None = None

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is None

    def wait(self, seconds: float = 240) -> int:
        """Its code; ends everything where it does not end in time, which counts as a hang."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = 999
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, as `kill` does."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def errors(self) -> list[str]:
        """The lines in which it says what went wrong."""
        return [line for line in self.said().splitlines() if line.startswith(("boxless: error", "boxless: this is"))]

    def one_line(self) -> bool:
        """Whether it ended with one line, and not with a traceback."""
        return self.code == 2 and len(self.errors()) == 1 and "Traceback" not in self.said()

    def clear(self) -> None:
        """End what it has left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def children(self) -> list[int]:
        """Its data workers."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


def start(words: Words, log: Path, before: Callable[[], None] = lambda: None, **environment: str) -> Started:
    """Start a command in a fork of this process, which has imported all; `before` is called there first."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Started(pid, log)
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.environ.update(environment)
        random.seed()
        before()
        code = cli.main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def ran(words: Words, log: Path, **environment: str) -> Started:
    """A command that came to its end."""
    started = start(words, log, **environment)
    started.wait(300)
    return started


def wait_for(condition: Callable[[], object], started: Started, seconds: float = 60) -> bool:
    """Whether a condition came true while a process was running."""
    end = time.monotonic() + seconds
    while started.running() and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False


def rooms(room: Path) -> Iterator[Path]:
    """New folders, the one before removed."""
    number = 0
    while True:
        number += 1
        folder = room / f"try-{number}"
        folder.mkdir(parents=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
