"""What a pretraining trains, with all that its checkpoints keep."""

import time
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from boxless.detectors.trunk import Trunk
from boxless.interop.weights import load_trunk
from boxless.methods.method import as_module
from boxless.methods.moco import MomentumContrast
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.training.alarms import Alarm
from boxless.training.checkpoint import restore_optimizer
from boxless.training.distributed import synchronize_norms
from boxless.training.health import Health, HealthRecord
from boxless.training.optim import Lars, parameter_groups

LEAST_LOADED = 0.99
"""Share of the backbone, and of each part that the start's weights hold, that must be loaded."""


def check_start(recipe: PretrainRecipe, init: Path | None) -> None:
    """Build what the run will build, and load what it will load, to find a mistake before hours of proposals.

    Raises:
        UserError: where trunk, weights and method do not go together.
    """
    trunk = Trunk(recipe.trunk)
    if init is not None:
        load_trunk(trunk, init, LEAST_LOADED)
    recipe.method.build(trunk)


class Learner:
    """A trunk in a method, its optimizer and its record so far.

    Args:
        recipe: of the run; its seed draws what no weights fill.
        device: that it trains on.
        init: weights to start from.

    Attributes:
        trunk: what comes out.
        method: around the trunk.
        module: the method, placed; with norms over all processes where the method's may be.
        optimizer: over the module.
        start: what `init` filled, or None.
        health: measures so far.
        skipped: images that could not be read, with reasons.
    """

    def __init__(self, recipe: PretrainRecipe, device: torch.device, init: Path | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.trunk = Trunk(recipe.trunk)
        self.start = str(load_trunk(self.trunk, init, LEAST_LOADED)) if init is not None else None
        self.method = recipe.method.build(self.trunk)  # targets are copied here, so they start from the same weights
        module = as_module(self.method).to(device).to(memory_format=torch.channels_last)
        if not isinstance(recipe.method, MomentumContrast):  # whose norms keep to parts of the batch
            module = synchronize_norms(module)
        self.module: nn.Module = module
        self.optimizer = make_optimizer(module, recipe.optim)
        self.health = HealthRecord()
        self.skipped: dict[str, str] = {}
        self._spent, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long this run has trained, over all its sittings."""
        return self._spent + time.monotonic() - self._began

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.module.load_state_dict(state["module"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.start = state.get("init")
        self.skipped.update(state["skipped"])
        for step, values in state["health"]:
            self.health.add(step, Health(*values))
        self.health.alarms += [Alarm(*values) for values in state.get("alarms", [])]
        self._spent = state["seconds"]

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "health": [(s, list(astuple(v))) for s, v in zip(self.health.steps, self.health.values, strict=True)],
            "alarms": [list(astuple(alarm)) for alarm in self.health.alarms],
            "skipped": self.skipped,
            "init": self.start,
            "seconds": self.seconds,
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """The trunk's parts that are worth keeping: a backbone that was frozen belongs to what was trained on it."""
        return tuple(part for part in self.trunk.parts if part in ("backbone", *self.method.trains))


def make_optimizer(module: nn.Module, settings: PretrainOptim) -> Optimizer:
    """The optimiser of a pretraining over everything that takes gradients."""
    groups = parameter_groups(module, settings.weight_decay)
    for group in groups:
        group["lr_scale"] = settings.bias_lr_scale if group["params"][0].ndim <= 1 else 1.0
    if settings.name == "lars":
        return Lars(groups, settings.base_lr, settings.momentum, adapt_biases=settings.adapt_biases)
    if settings.name == "sgd":
        return SGD(groups, lr=settings.base_lr, momentum=settings.momentum, foreach=True)
    return AdamW(groups, lr=settings.base_lr, fused=None if torch.cuda.is_available() else True)


def skipped_report(skipped: Mapping[str, str], what: str = "images") -> str:
    """Images that could not be read, counted and listed."""
    lines = [f"  {path}: {reason}" for path, reason in sorted(skipped.items())[:20]]
    more = f"\n  ... and {len(skipped) - 20} more" if len(skipped) > 20 else ""
    return f"{len(skipped)} {what} could not be read and were left out:\n" + "\n".join(lines) + more
