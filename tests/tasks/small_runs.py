"""Runs small enough for a test: settings, and a process that can be killed."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from boxless import finetune, pretrain
from boxless.runs.run import Run

TRUNK = {"trunk.backbone": "resnet18", "trunk.fpn_channels": 16, "trunk.box_head_width": 32, "precision": "32-true"}
VIEWS = {"method.size": 48, "method.hidden": 32, "method.output": 16, "workers": 0, "batch_size": 4}
STEPS = {"epochs": 4, "checkpoint_every": 3, "health_every": 4, "optim.warmup_epochs": 1}
PRETRAIN = {**TRUNK, **VIEWS, **STEPS}
FINETUNE = {
    "recipe": "faster-rcnn-fpn",
    **TRUNK,
    "batch_size": 2,
    "iterations": 8,
    "checkpoint_every": 3,
    "evaluate_every": 5,
    "min_size": (64, 80),
    "max_size": 96,
    "workers": 0,
    "detector.rpn_samples": 32,
    "detector.rpn_proposals": 30,
    "detector.roi_samples": 16,
}


def pretraining(scenes: Path, out: Path, method: str, **changes: Any) -> Run:
    """Eight steps of a method on eight scenes; SoCo with boxes of a grid."""
    own = {"method.small_size": 24, "proposals.method": "grid"} if method == "soco" else {}
    recipe = {"soco": "soco-r50-fpn", "byol": "byol-r50", "moco": "moco-r50"}[method]
    settings = {**PRETRAIN, **own, **changes}
    return pretrain(str(scenes / "images" / "unlabelled"), str(out), recipe, quiet=True, **settings)


def finetuning(scenes: Path, out: Path, weights: str | None = None, **changes: Any) -> Run:
    """Eight steps of Faster R-CNN on four scenes."""
    labels = scenes / "annotations"
    images = {"data": str(labels / "train.json"), "val": str(labels / "val.json")}
    return finetune(**images, out=str(out), weights=weights, quiet=True, **{**FINETUNE, **changes})


def in_process(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start a function in a process of its own, with everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["boxless.tasks.pretrain", "boxless.tasks.finetune"])
    process = context.Process(target=_call, args=(dict(os.environ), function, arguments), daemon=True)
    process.start()
    return process


def wait_for(condition: Callable[[], object], process: BaseProcess, seconds: float = 60) -> None:
    """Wait until the condition holds while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "ended before what was waited for"
        time.sleep(0.01)


def _call(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)  # a fork server keeps the environment of its start
    function(*arguments)
