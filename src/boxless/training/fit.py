"""The life of a training run, for any Task: resume, step by step to the end with checkpoints on the way, finish."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from boxless.errors import Unfinished, UserError, is_out_of_memory
from boxless.training.checkpoint import check_network, load_checkpoint, restore_optimizer, save_checkpoint
from boxless.training.distributed import averaged, broadcast, merged, on_rank_zero, rank, world_size
from boxless.training.faults import until_lost
from boxless.training.health import Alarm, AlarmDetector
from boxless.training.logger import MetricLogger, make_loggers
from boxless.training.memory import OutOfMemory, release
from boxless.training.nan_guard import NanGuard, NonFiniteStep
from boxless.training.progress import say
from boxless.training.signals import Signals
from boxless.training.task import Folder, Task


def fit(task: Task, run: Folder, fabric: Fabric, quiet: bool = False) -> None:
    """Train a task in a run's folder, from its newest checkpoint or from the start, to the end.

    A run that is stopped and goes on takes the same steps as one that is not: batches and random draws depend on seed
    and step alone.

    Raises:
        UserError: memory runs out, or a loss or gradient is NaN or infinite; the last checkpoint is kept.
        Unfinished: a signal ended it; a checkpoint is kept.
    """
    recipe, checkpoints, began = task.recipe, run.path / "checkpoints", time.monotonic()
    state = broadcast(on_rank_zero(lambda: load_checkpoint(checkpoints)))
    task.build(fresh=state is None)
    step, spent = 0, 0.0
    if state is not None:
        with check_network(run.path):
            _restore(task, fabric, state)
        step, spent = state["step"], state["seconds"]
        say(f"{run.path}: continuing at step {step} of {task.steps}", quiet)
    first = step
    module, optimizer = fabric.setup(task.module, task.optimizer)
    module.train()
    log = _logger(task, run, first, quiet)
    guard = NanGuard(module, late=fabric.device.type == "cuda", overflows=_scaler(fabric) is not None)
    alarms, signals = AlarmDetector(), Signals()

    def raise_alarms(checked: Iterable[tuple[int, dict[str, float]]]) -> None:
        for past, values in checked:
            for alarm in alarms.see(past, values):
                task.alarms.append(alarm)
                log.alarm(alarm)

    def seconds() -> float:
        return spent + time.monotonic() - began

    def save() -> None:
        content = _state(task, fabric, seconds())
        on_rank_zero(lambda: save_checkpoint(checkpoints, step, content))

    def save_what_is_done() -> str:
        if step > first:
            raise_alarms(guard.settle())
            log.settle(step - 1)
            save()
        return f"{step} of {task.steps} steps are kept"

    try:
        with signals:
            batches = task.batches(step, task.steps) if step < task.steps else ()
            for batch in log.timed(until_lost(batches, save_what_is_done)):
                rate = task.learning_rate(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                own = _gradients(task, fabric, module, optimizer, batch, step, quiet)
                terms = {**averaged(own, fabric.device), **_clip(fabric, module, optimizer, recipe.optim.clip_norm)}
                raise_alarms(guard.check(step, batch, terms, own["loss"]))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                task.after_step(step, log)
                _evaluate(task, log, signals, step)
                step += 1
                stopping = step < task.steps and signals()
                saving = stopping or step == task.steps or step % recipe.checkpoint_every == 0
                if saving:
                    raise_alarms(guard.settle())
                # No scalar is left for after a checkpoint: a resumed run would miss it.
                log.record(step - 1, {**terms, "learning_rate": rate}, now=saving)
                if saving:
                    save()
                if stopping:
                    break
    except OutOfMemory as error:
        raise UserError(f"{run.path}: {error}; {task.remedy(error)}") from None
    except NonFiniteStep as error:
        log.status = f"stopped at {error}"
        raise UserError(f"{run.path}: stopped, {error}; the last checkpoint is kept. {task.remedy(error)}") from None
    finally:
        log.close()
    if step < task.steps:
        raise signals.unfinished(run.path, step, task.steps)
    try:
        with signals, signals.at_once():
            task.finish(seconds())
    except Unfinished:
        raise signals.unfinished(run.path, step, task.steps) from None


def seed_step(seed: int, step: int, process: int) -> None:
    """Make random draws inside modules depend on step and process alone, so that a run that goes on repeats them."""
    torch.manual_seed(seed * 1_000_003 + step + process * 2_654_435_761)


def _logger(task: Task, run: Folder, first: int, quiet: bool) -> MetricLogger:
    """The metric logger of the first process; others write nothing."""
    if rank() > 0:
        return MetricLogger(None, first, task.steps, task.batch)
    loggers = make_loggers(task.recipe.loggers, run.path, asdict(task.recipe))  # type: ignore[call-overload]
    return MetricLogger(run.path, first, task.steps, task.batch, title=task.title, quiet=quiet, loggers=loggers)


def _state(task: Task, fabric: Fabric, seconds: float) -> dict[str, Any]:
    """The content of a checkpoint; the same on all processes."""
    task.skipped.update(merged(task.skipped))
    state = {
        "module": task.module.state_dict(),
        "optimizer": task.optimizer.state_dict(),
        "skipped": task.skipped,
        "alarms": [list(astuple(alarm)) for alarm in task.alarms],
        "seconds": seconds,
        "fewest": task.micro_batches.size,
        **task.state(),
    }
    return state if _scaler(fabric) is None else {**state, "scale": fabric.strategy.precision.state_dict()}


def _restore(task: Task, fabric: Fabric, state: dict[str, Any]) -> None:
    task.module.load_state_dict(state["module"])
    restore_optimizer(task.optimizer, state["optimizer"])
    task.skipped.update(state.get("skipped", {}))
    task.alarms += [Alarm(*values) for values in state.get("alarms", [])]
    task.micro_batches.restore(state.get("fewest", task.micro_batches.images))
    task.restore(state)
    if _scaler(fabric) is not None and "scale" in state:
        fabric.strategy.precision.load_state_dict(state["scale"])


def _gradients(
    task: Task, fabric: Fabric, module: nn.Module, optimizer: Optimizer, batch: Any, step: int, quiet: bool
) -> Mapping[str, Tensor]:
    """Gradients of a step and its scalars, in smaller micro-batches if memory runs out."""
    micro_batches = task.micro_batches
    buffers = [buffer.clone() for buffer in module.buffers()] if micro_batches.adaptive else []
    while True:
        seed_step(task.recipe.seed, step, rank())
        try:
            return _backward(task, fabric, module, micro_batches.split(batch), step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it the frames that held the step's tensors.
        optimizer.zero_grad(set_to_none=True)
        release()
        # With several processes the others are waiting for this step.
        if not micro_batches.adaptive or world_size() > 1 or not micro_batches.shrink():
            raise OutOfMemory(step, batch)
        say(f"memory is short: from step {step} on, {micro_batches.size} image(s) at a time", quiet)
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _backward(
    task: Task, fabric: Fabric, module: nn.Module, micro_batches: Sequence[Any], step: int
) -> Mapping[str, Tensor]:
    """Gradients of the mean over all micro-batches, and each scalar's mean over those that have it."""
    outputs = []
    for number, batch in enumerate(micro_batches, start=1):
        # Processes wait for each other's gradients once per step, not once per micro-batch.
        with fabric.no_backward_sync(module, enabled=number < len(micro_batches)):  # type: ignore[arg-type]
            terms = task.loss(module, batch, step)
            fabric.backward(terms["loss"] / len(micro_batches))
        outputs.append({name: value.detach() for name, value in terms.items()})
    if len(outputs) == 1:
        return outputs[0]
    names = dict.fromkeys(name for terms in reversed(outputs) for name in terms)
    return {name: torch.stack([terms[name] for terms in outputs if name in terms]).mean(0) for name in names}


@torch.no_grad()
def _clip(fabric: Fabric, module: nn.Module, optimizer: Optimizer, clip_norm: float | None) -> dict[str, Tensor]:
    """Clip the gradients if asked; the norm of all of them before that, and half precision's loss scale."""
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


def _evaluate(task: Task, log: MetricLogger, signals: Signals, step: int) -> None:
    """Scores on validation data if they are due; a signal gives them up, and the run ends after this step."""
    if task.evaluate_every is None or (step + 1) % task.evaluate_every or step + 1 == task.steps:
        return

    def evaluate() -> None:
        try:
            with signals.at_once():
                values = task.evaluate()
        except Unfinished:
            return
        log.write(step, {f"val/{name}": value for name, value in values.items()})
        log.status = "".join(f"val {name} {value:.1%}" for name, value in list(values.items())[:1])

    on_rank_zero(evaluate)
