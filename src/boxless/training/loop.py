"""The only training loop: pretraining passes a method, fine-tuning a detector."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from boxless.training.distributed import averaged, rank
from boxless.training.journal import Journal


class NonFiniteLoss(Exception):
    """The loss or one of its terms became NaN or infinite; the weights may be lost since the last checkpoint."""


@dataclass
class Progress:
    """How far a run is: `step` optimizer steps of `total` are done."""

    step: int
    total: int


def train(
    fabric: Fabric,
    module: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    losses: Callable[[Any, int], Mapping[str, Tensor]],
    learning_rate: Callable[[int], float],
    progress: Progress,
    journal: Journal,
    after_step: Callable[[int], None] = lambda step: None,
    save: Callable[[], None] = lambda: None,
    save_every: int = 1000,
    clip_norm: float | None = None,
    parts: Callable[[Any], Sequence[Any]] = lambda batch: (batch,),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train until `progress.total` steps are done, or until `stop`.

    Args:
        fabric: device, precision and processes.
        module: in training mode, set up by Fabric.
        optimizer: set up by Fabric; a group's `lr_scale` multiplies the learning rate.
        batches: from step `progress.step` on.
        losses: batch and step -> named scalars; `loss` is minimised, the others are logged.
        learning_rate: step -> rate.
        progress: is moved.
        journal: takes the scalars of each step and reports them from time to time.
        after_step: called with the step after the optimizer has moved: moves targets, measures, may stop the run.
        save: writes a checkpoint of the state after `progress.step` steps.
        save_every: steps between checkpoints.
        clip_norm: largest norm of all gradients together.
        parts: a batch in equal parts, which `losses` takes one after the other where memory is short; losses and
            gradients are averaged over them.
        stop: asked after each step but the last, by all processes alike; true ends the loop after a checkpoint.

    Raises:
        NonFiniteLoss: naming the step and the terms.
    """
    module.train()
    for batch in journal.waited_for(batches):
        step = progress.step
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # Random draws inside modules depend on step and process alone, so that a resumed run repeats them.
        torch.manual_seed(journal.seed * 1_000_003 + step + rank() * 2_654_435_761)
        terms = averaged(_backward(fabric, module, parts(batch), losses, step), fabric.device)
        if clip_norm is not None:
            fabric.clip_gradients(module, optimizer, max_norm=clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step)
        progress.step += 1
        stopping = progress.step < progress.total and stop()
        saving = stopping or (progress.step % save_every == 0 and progress.step < progress.total)
        # Scalars are fetched a few steps late, so that the device never waits for the log; but none is left for after
        # a checkpoint: a resumed run would miss it, and a checkpoint after a broken loss is worth nothing.
        for past, values in journal.record(step, {**terms, "learning_rate": rate}, now=saving):
            broken = {name: value for name, value in values.items() if not math.isfinite(value)}
            if broken:
                named = ", ".join(f"{name} = {value}" for name, value in broken.items())
                journal.status = f"stopped at step {past}: {named}"
                raise NonFiniteLoss(f"step {past}: {named}")
        if saving:
            save()
        if stopping:
            return


def _backward(
    fabric: Fabric,
    module: nn.Module,
    parts: Sequence[Any],
    losses: Callable[[Any, int], Mapping[str, Tensor]],
    step: int,
) -> Mapping[str, Tensor]:
    """Gradients of the mean over all parts, and the means of their scalars."""
    of_parts = []
    for number, part in enumerate(parts, start=1):
        # Processes wait for each other's gradients once per step, not once per part.
        with fabric.no_backward_sync(module, enabled=number < len(parts)):  # type: ignore[arg-type]
            terms = losses(part, step)
            fabric.backward(terms["loss"] / len(parts))
        of_parts.append({name: value.detach() for name, value in terms.items()})
    if len(of_parts) == 1:
        return of_parts[0]
    return {name: torch.stack([terms[name] for terms in of_parts]).mean(0) for name in of_parts[0]}
