"""The only training loop: pretraining passes a method, fine-tuning a detector."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from boxless.errors import is_out_of_memory
from boxless.training.alarms import Alarms
from boxless.training.distributed import averaged, rank, world_size
from boxless.training.faults import until_lost
from boxless.training.logger import Journal
from boxless.training.memory import OutOfMemory, release
from boxless.training.nan_guard import Guard, NonFiniteStep


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
    smaller: Callable[[], bool] | None = None,
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
        smaller: called where memory ran out: whether `parts` gives smaller ones now, to take the step again with.

    Raises:
        NonFiniteStep: naming the step and the terms; no weight has seen it, or on a GPU those of one step alone.
        OutOfMemory: where a step does not fit.
    """
    module.train()
    guard = Guard(module, late=fabric.device.type == "cuda", overflows=_scaler(fabric) is not None)
    alarms = Alarms()

    def finite(looked_at: Iterable[tuple[int, dict[str, float]]]) -> None:
        try:
            for past, values in looked_at:
                for alarm in alarms.see(past, values):
                    journal.alarm(alarm)
        except NonFiniteStep as error:
            journal.status = f"stopped at {error}"
            raise

    begin = progress.step

    def keep() -> str:
        if progress.step > begin:
            finite(guard.settle())
            journal.settle(progress.step - 1)
            save()
        return f"{progress.step} of {progress.total} steps are kept"

    for batch in journal.waited_for(until_lost(batches, keep)):
        step = progress.step
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        own = _gradients(fabric, module, optimizer, batch, parts, losses, step, journal.seed, smaller)
        terms = dict(averaged(own, fabric.device))
        terms |= _sizes(fabric, module, optimizer, clip_norm)
        finite(guard.check(step, batch, terms, own["loss"]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step)
        progress.step += 1
        stopping = progress.step < progress.total and stop()
        saving = stopping or (progress.step % save_every == 0 and progress.step < progress.total)
        if saving or progress.step == progress.total:
            finite(guard.settle())
        # None is left for after a checkpoint: a resumed run would miss it.
        journal.record(step, {**terms, "learning_rate": rate}, now=saving)
        if saving:
            save()
        if stopping:
            return


def seed_step(seed: int, step: int, process: int) -> None:
    """Make random draws inside modules depend on step and process alone, so that a run that goes on repeats them."""
    torch.manual_seed(seed * 1_000_003 + step + process * 2_654_435_761)


def _gradients(
    fabric: Fabric,
    module: nn.Module,
    optimizer: Optimizer,
    batch: Any,
    parts: Callable[[Any], Sequence[Any]],
    losses: Callable[[Any, int], Mapping[str, Tensor]],
    step: int,
    seed: int,
    smaller: Callable[[], bool] | None,
) -> Mapping[str, Tensor]:
    """What `_backward` gives, in smaller parts where memory runs out."""
    buffers = [buffer.clone() for buffer in module.buffers()] if smaller is not None else []
    while True:
        seed_step(seed, step, rank())
        try:
            return _backward(fabric, module, parts(batch), losses, step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it the frames that held the step's tensors.
        optimizer.zero_grad(set_to_none=True)
        release()
        if smaller is None or world_size() > 1 or not smaller():  # of several processes the others are waiting
            raise OutOfMemory(step, batch)
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)


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


@torch.no_grad()
def _sizes(fabric: Fabric, module: nn.Module, optimizer: Optimizer, clip_norm: float | None) -> dict[str, Tensor]:
    """The norm of all gradients together, before they are clipped, and half precision's loss scale."""
    scaler = _scaler(fabric)
    scales = {} if scaler is None else {"loss_scale": torch.tensor(scaler.get_scale(), device=fabric.device)}
    if clip_norm is not None:
        norm = fabric.clip_gradients(module, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        assert norm is not None
        return {"gradient_norm": norm, **scales}
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1, device=fabric.device)
    return {"gradient_norm": torch.linalg.vector_norm(norms) / scales.get("loss_scale", 1.0), **scales}


def _scaler(fabric: Fabric) -> Any:
    """Half precision's loss scale (torch.amp.GradScaler), or None."""
    return getattr(fabric.strategy.precision, "scaler", None)


def kept_scale(fabric: Fabric) -> dict[str, Any]:
    """What a checkpoint keeps of half precision's loss scale; nothing in other precisions."""
    return {"scale": fabric.strategy.precision.state_dict()} if _scaler(fabric) is not None else {}


def restore_scale(fabric: Fabric, state: Mapping[str, Any]) -> None:
    """Give half precision the loss scale that a checkpoint keeps, if it does."""
    if _scaler(fabric) is not None and "scale" in state:
        fabric.strategy.precision.load_state_dict(state["scale"])
