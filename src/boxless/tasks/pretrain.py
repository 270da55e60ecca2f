"""A pretraining run, from images to weights."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from boxless.data.dataloader import arriving_batches, equally_wide
from boxless.data.gpu_jpeg import require_gpu_decoder
from boxless.data.index import ImageIndex
from boxless.data.shards.fetch import image_order
from boxless.data.unlabelled import Batch, Boxes, ViewDataset
from boxless.errors import UserError
from boxless.interop.weights import save_trunk
from boxless.recipes.schema import PretrainRecipe
from boxless.runs.run import Run, start_run, write_json
from boxless.runs.weights import adopt
from boxless.tasks.batch_size import need_less
from boxless.tasks.compiling import compile_parts, is_compiled
from boxless.tasks.learner import Learner, skipped_report
from boxless.tasks.objective import Objective
from boxless.tasks.replay import keep
from boxless.tasks.schedule import Plan, rates_in_words
from boxless.training.checkpoint import fitting, load_checkpoint, save_checkpoint
from boxless.training.device import training_fabric, worker_count
from boxless.training.distributed import gather_rows, rank, world_size
from boxless.training.faults import mishaps
from boxless.training.fit import Progress, kept_scale, restore_scale, train
from boxless.training.health import measure
from boxless.training.logger import Journal
from boxless.training.loggers import make_loggers
from boxless.training.memory import OutOfMemory
from boxless.training.nan_guard import NonFiniteStep
from boxless.training.optim import warmup_cosine
from boxless.training.progress import say
from boxless.training.rank_zero import alone, check_same, shared, united
from boxless.training.signals import Interruption


class Collapse(Exception):
    """The embeddings of all images have become the same."""


def with_trunk_of(recipe: PretrainRecipe, init: str | None) -> PretrainRecipe:
    """The recipe with what the weights that it starts from decide of its trunk, if they are of a run; see `adopt`."""
    return replace(recipe, trunk=adopt(recipe.trunk, init))


def run_pretraining(
    index: ImageIndex,
    boxes: Boxes | None,
    recipe: PretrainRecipe,
    recipe_text: str,
    out: Path,
    init: Path | None,
    quiet: bool,
    allow_changes: bool = False,
) -> Run:
    """Pretrain in a folder, continuing what is there; see `boxless.pretrain`."""
    run = Run(out)
    fabric = training_fabric(recipe.precision)
    quiet = quiet or rank() > 0
    inputs = {
        "images": len(index),
        "data": index.fingerprint,
        "content": index.content,
        "init": str(init) if init else None,
    }
    check_same("data", f"{len(index)} images ({index.content})")
    with mishaps(out), alone(lambda: start_run(out, recipe_text, inputs, allow_changes)) or nullcontext():
        if shared(run.finished):
            say(f"{out}: this run is finished already", quiet)
        else:
            _pretrain(fabric, run, index, boxes, recipe, init, quiet)
    return run


def _pretrain(
    fabric: Fabric,
    run: Run,
    index: ImageIndex,
    boxes: Boxes | None,
    recipe: PretrainRecipe,
    init: Path | None,
    quiet: bool,
) -> None:
    if recipe.decoder == "gpu":
        require_gpu_decoder(fabric.device)
    plan = Plan.of(recipe, len(index), world_size())
    say(rates_in_words(plan.batch, recipe.optim.base_lr, recipe.optim.reference_batch, world_size()), quiet)
    if len(index) < recipe.batch_size:
        say(f"batch_size: {plan.batch} (all images), not {recipe.batch_size}", quiet)
    torch.backends.cudnn.benchmark = True  # views have few sizes: the fastest convolutions are found once
    state = shared(alone(lambda: load_checkpoint(run.path / "checkpoints")))
    # A run that goes on has its weights, whatever the file now holds.
    learner = Learner(recipe, fabric.device, init if state is None else None)
    progress = Progress(0, plan.steps)
    if state is not None:
        with fitting(run.path):
            learner.restore(state)
        restore_scale(fabric, state)
        progress.step = state["step"]
        say(f"{run.path}: continuing at step {progress.step} of {plan.steps}", quiet)
    elif learner.start is not None:
        say(learner.start, quiet)
    dataset = ViewDataset(index, recipe.method.views(), boxes, recipe.seed)
    dataset[0, 0]  # where nothing can be read, this says so in one line; a worker's error would come with its traceback
    _train(
        fabric, run, learner, recipe, plan, progress, _batches(fabric, index, dataset, recipe, plan, progress), quiet
    )
    learner.skipped.update(united(learner.skipped))

    def finish() -> None:
        save_trunk(run.weights, learner.trunk, learner.parts)
        write_json(run.path / "summary.json", _summary(recipe, plan, learner))

    alone(finish)
    say(learner.health.report(), quiet)
    if learner.skipped:
        say(skipped_report(learner.skipped), quiet)
    say(f"weights: {run.weights} ({', '.join(learner.parts)})", quiet)


def _batches(
    fabric: Fabric, index: ImageIndex, dataset: ViewDataset, recipe: PretrainRecipe, plan: Plan, progress: Progress
) -> Iterator[Batch]:
    """This process's share of each step that is left, on the device."""
    own = plan.batch // world_size()
    places = progress.step, plan.steps, recipe.seed, recipe.shard_buffer, rank(), world_size()
    order, workers = image_order(index, own, *places), worker_count(recipe.workers, 16)
    batches = arriving_batches(fabric, dataset, order, workers, recipe.decoder)
    return equally_wide(batches) if recipe.method.needs_boxes and world_size() > 1 else batches


def _train(
    fabric: Fabric,
    run: Run,
    learner: Learner,
    recipe: PretrainRecipe,
    plan: Plan,
    progress: Progress,
    batches: Iterable[Batch],
    quiet: bool,
) -> None:
    """Take the steps that are left, with checkpoints, measures and a journal on the way."""
    compiled = is_compiled(recipe, plan.steps, fabric.device)
    if compiled:
        say("compiling: the first steps take a minute or two", quiet)
        compile_parts(learner.module, learner.trunk)
    placed, optimizer = fabric.setup(learner.module, learner.optimizer)
    objective = Objective(fabric, placed, recipe, learner.skipped, compiled)
    where, loggers = run.path if rank() == 0 else None, make_loggers(recipe.loggers, run.path, asdict(recipe))
    journal = Journal(
        where, progress.step, plan.steps, recipe.seed, plan.batch, title="pretrain", quiet=quiet, loggers=loggers
    )

    journal.alarms = learner.health.alarms

    def save() -> None:
        learner.skipped.update(united(learner.skipped))
        content = {**learner.content(), **kept_scale(fabric)}
        alone(lambda: save_checkpoint(run.path / "checkpoints", progress.step, content))

    stop = Interruption()
    try:
        with stop:
            train(
                fabric,
                placed,
                optimizer,
                batches,
                objective,
                partial(warmup_cosine, **plan.learning_rates(recipe.optim)),
                progress,
                journal,
                _after_step(learner, recipe, plan, objective, journal),
                save,
                recipe.checkpoint_every,
                recipe.optim.clip_norm,
                stop=stop,
            )
    except Collapse:
        raise UserError(
            f"{run.path}: stopped at step {progress.step}, {learner.health.verdict}; the last checkpoint is kept. "
            f"Lower optim.base_lr, raise method.momentum, or go on with stop_on_collapse=false\n"
            f"{learner.health.report()}"
        ) from None
    except OutOfMemory as error:
        raise UserError(f"{run.path}: {error}; {need_less(objective, error, recipe)}") from None
    except NonFiniteStep as error:
        raise UserError(
            f"{run.path}: stopped, {error}; the last checkpoint is kept. Lower optim.base_lr; to see where it began: "
            f"boxless pretrain --replay {keep(run.path, error)}"
        ) from None
    finally:
        journal.close()
    if progress.step < plan.steps:
        raise stop.unfinished(run.path, progress.step, plan.steps)


def _after_step(
    learner: Learner, recipe: PretrainRecipe, plan: Plan, objective: Objective, journal: Journal
) -> Callable[[int], None]:
    """What follows each step: targets move, and from time to time the embeddings are measured."""
    momentum: Callable[[int, int], float] | None = getattr(learner.method, "momentum", None)  # of a target that follows

    def after_step(step: int) -> None:
        learner.method.after_step(step, plan.steps)
        if step % recipe.health_every and step + 1 < plan.steps:
            return
        online, target = objective.output.online, objective.output.target
        if online is not None and target is not None:
            health = shared(measure(gather_rows(online), gather_rows(target)))
            learner.health.add(step, health)
            journal.write(step, {f"health/{name}": value for name, value in asdict(health).items()})
            journal.status = learner.health.verdict
        if momentum is not None:
            journal.write(step, {"momentum": momentum(step, plan.steps)})
        if recipe.stop_on_collapse and learner.health.collapsed_at is not None:
            raise Collapse

    return after_step


def _summary(recipe: PretrainRecipe, plan: Plan, learner: Learner) -> dict[str, Any]:
    seconds = learner.seconds
    return {
        "method": recipe.method.name,
        "init": learner.start or "random weights",
        "trains": list(learner.method.trains),
        "steps": plan.steps,
        "images_seen": plan.steps * plan.batch,
        "seconds": round(seconds, 1),
        "images_per_second": round(plan.steps * plan.batch / seconds, 2),
        "health": learner.health.verdict,
        "health_report": learner.health.report(),
        "skipped": learner.skipped,
    }
