"""The plan of a pretraining: length, batch and queue from the images, time from real steps, said beforehand.

Steps grow with the square root of the number of images: few are seen more often, as in the papers' runs on COCO (800
epochs of 118,000 images) and on ImageNet (100 to 400 of 1,281,167).
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric

from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.interop.imagenet import in_words
from boxless.recipes.overrides import override
from boxless.recipes.schema import PretrainRecipe
from boxless.runs.run import Run
from boxless.tasks.batch_size import first_images
from boxless.tasks.plan import (
    FEWEST_STEPS,
    MOST_MINUTES,
    ROOM,
    Cost,
    PlanOptions,
    available_memory,
    peak_memory,
    reset_peak,
)
from boxless.tasks.pretrain import PretrainTask
from boxless.tasks.schedule import PretrainSchedule
from boxless.training.device import make_fabric, resolve_precision
from boxless.training.distributed import world_size
from boxless.training.memory import release
from boxless.training.progress import duration, say

FEWEST, MOST = 300, 20_000
"""Steps for however few, and however many, images."""
STEPS = 30.0
"""Steps for each image, at the square root of their number."""


def planned_pretraining(
    recipe: PretrainRecipe, options: PlanOptions, images: ImageIndex, out: Path, weights: str | None
) -> PretrainRecipe:
    """A recipe with what the plan decides; prints it with the time, measured on real steps.

    A run that goes on keeps what was decided. Several processes measure nothing, and methods that need boxes neither.

    Raises:
        UserError: the time is too short, or cannot be planned for.
    """
    run = Run(out)
    if options.settings:
        recipe = fitted(recipe, len(images), options.given)
    timed = options.minutes is not None or (options.settings and "epochs" not in options.given)
    if run.recipe_file.is_file() and (bool(run.checkpoints) or run.finished):
        return replace(recipe, epochs=run.settings["epochs"]) if timed else recipe
    unmeasured = "several processes" if world_size() > 1 else recipe.method.name if recipe.method.needs_boxes else None
    if unmeasured is not None and options.minutes is not None:
        raise UserError(f"--minutes: the time of {unmeasured} is not measured; give --epochs")
    if unmeasured is not None or not (timed or not options.quiet):
        return recipe
    fabric = make_fabric(recipe.precision)
    cost = measure(recipe, fabric, images)
    seconds, minutes = cost.seconds, options.minutes
    if minutes is None and timed and fabric.device.type == "cpu":
        minutes = max(MOST_MINUTES, FEWEST * seconds / 60)
    if minutes is not None:
        steps, fitting = PretrainSchedule.of(recipe, len(images)).steps, int(60 * minutes / seconds)
        if fitting < FEWEST_STEPS:
            raise UserError(
                f"--minutes {minutes:g}: room for {fitting} steps of {seconds:.2g} s, too few; give "
                f"{FEWEST_STEPS * seconds / 60:.0f} minutes or more, or a smaller --batch-size"
            )
        if options.minutes is not None or fitting < steps:
            recipe = replace(recipe, epochs=epochs_of(fitting, recipe.batch_size, len(images)))
    say(describe_plan(recipe, images, cost, weights, fabric), options.quiet)
    return recipe


def fitted(recipe: PretrainRecipe, images: int, given: frozenset[str]) -> PretrainRecipe:
    """A recipe's length, warm-up and queue for a number of images, except for keys that are given."""
    batch = min(recipe.batch_size, images)
    steps = int(np.clip(STEPS * np.sqrt(images), FEWEST, MOST))
    if "epochs" not in given:
        recipe = replace(recipe, epochs=epochs_of(steps, batch, images))
    if "optim.warmup_epochs" not in given:  # a tenth of the run, which is the most there is
        recipe = replace(recipe, optim=replace(recipe.optim, warmup_epochs=recipe.epochs))
    queue: Any = getattr(recipe.method, "queue_length", None)
    if queue and "method.queue_length" not in given:  # an image is no rival of itself
        fewer = max(batch, images // 2 // batch * batch)
        recipe = override(recipe, {"method.queue_length": min(queue, fewer)})
    return recipe


def epochs_of(steps: int, batch: int, images: int) -> float:
    """Epochs of so many steps."""
    return steps / (images // min(batch, images))


def measure(recipe: PretrainRecipe, fabric: Fabric, images: ImageIndex) -> Cost:
    """Time and memory of a step, views and all, by one of a quarter of a batch and one of all; no weight moves.

    Raises:
        UserError: a batch does not fit into memory.
    """
    task = PretrainTask(replace(recipe, workers=0), fabric, Path(), images, quiet=True)
    task.build()
    module = fabric.setup_module(task.module).train()
    room, peak, seconds = available_memory(fabric.device), 0, 0.0
    batches = task.batches(0, 2)
    for share in (max(2, task.batch // 4), task.batch):
        needed = peak * task.batch // max(2, task.batch // 4)
        if needed > ROOM * room:
            raise UserError(
                f"memory: a step of {task.batch} images needs about {needed / 1e9:.1f} GB, {room / 1e9:.1f} GB are "
                "free; give a smaller --batch-size or --method.size, or close other programs"
            )
        reset_peak(fabric.device)
        began = time.perf_counter()
        batch = first_images(next(batches), share)
        fabric.backward(task.loss(module, batch, 0)["loss"])
        module.zero_grad(set_to_none=True)
        seconds, peak = time.perf_counter() - began, peak_memory(fabric.device)
    del module, task
    release()
    return Cost(seconds, peak, room, len(batch.valid))


def describe_plan(recipe: PretrainRecipe, images: ImageIndex, cost: Cost, weights: str | None, fabric: Fabric) -> str:
    """The plan in five lines for people."""
    schedule, method, device = PretrainSchedule.of(recipe, len(images)), recipe.method, fabric.device
    start = f"weights {in_words(weights)}" if weights else "from random weights"
    size = getattr(method, "size", None)
    views = f"; views of {size} px" if size else ""
    return (
        f"plan: {method.name} on {recipe.trunk.backbone}, {start}\n"
        f"  {len(images)} images, each seen {recipe.epochs:.3g} times{views}\n"
        f"  {schedule.steps} steps of {schedule.batch} images, {schedule.warmup} of them to warm up; "
        f"{recipe.optim.name}, peak rate {schedule.peak:.2g}\n"
        f"  {device.type} ({resolve_precision(recipe.precision)}): {cost.seconds:.2g} s a step, about "
        f"{duration(cost.seconds * schedule.steps)} to train\n"
        f"  memory: {cost.memory / 1e9:.1f} of {cost.available / 1e9:.1f} GB"
    )
