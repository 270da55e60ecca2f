"""The plan of a fine-tuning: settings from labels and machine, and time and memory from real steps, said beforehand.

Rules of thumb and their sources: steps grow with the square root of the labelled boxes, as published recipes for few
labels do (CutLER, TFA, DETReg); small objects get about 16 px, the least that a stride of 4 tells apart well.
"""

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from boxless.data.annotations.read import LabelledData
from boxless.data.detection import DetectionSample
from boxless.detectors.detector import build_trunk
from boxless.errors import UserError, is_out_of_memory
from boxless.interop.imagenet import in_words
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.runs.weights import recipe_of
from boxless.tasks.finetune import DetectTask, detector_losses
from boxless.tasks.labels import choose_labels
from boxless.tasks.schedule import FinetuneSchedule
from boxless.training.device import make_fabric, resolve_precision
from boxless.training.distributed import world_size
from boxless.training.memory import release
from boxless.training.progress import duration, say

SMALLEST = 16.0
"""Side that the smallest tenth of the objects is shown at, px, if the machine allows."""
LONGEST_SIDE = {"cpu": 400, "cuda": 800}
"""Largest shorter side of images by device, px."""
FEWEST_BY_LABELS = 300
"""Steps for however few labels."""
MOST_STEPS = {"cpu": 2000, "cuda": 5000}
"""Steps for however many labels, by device: on a processor about an hour."""
ANCHORS = (8, 12, 16, 24, 32)
"""Choices for the smallest anchor, px; each next level has twice the size."""
MOST_MINUTES = 60.0
"""Time to train on a processor where the user gives neither steps nor minutes."""
FEWEST_STEPS = 50
"""Steps below which nothing is learned that is worth measuring."""
WORTHWHILE = 150
"""Steps for which images are shown smaller where fewer fit into the time."""
LEAST_SIDE = 160
"""Smallest shorter side that this leads to, px."""
TEACHING = 2 / 3
"""Time of the teacher's two looks at a batch, as a share of a step's."""
ROOM = 0.8
"""Share of the free memory that a plan may fill."""


@dataclass(frozen=True)
class PlanOptions:
    """Limits of a plan.

    Attributes:
        settings: true if settings are chosen from the data.
        given: keys that the user has set, which stay.
        minutes: time to train, which decides the length; None for none.
        quiet: print nothing.
    """

    settings: bool
    given: frozenset[str] = frozenset()
    minutes: float | None = None
    quiet: bool = True


def planned(
    recipe: FinetuneRecipe,
    options: PlanOptions,
    data: LabelledData,
    val: LabelledData,
    out: Path,
    weights: str | None,
    unlabelled: bool = False,
) -> FinetuneRecipe:
    """A recipe with what the plan decides; prints it with time and memory, measured on real steps.

    A run that goes on keeps what was decided. Several processes measure nothing. `unlabelled`: true if the run trains
    itself on images without labels.

    Raises:
        UserError: not even one image fits into memory, or the time is too short or cannot be planned for.
    """
    run, fabric = Run(out), make_fabric(recipe.precision)
    chosen = choose_labels(data, recipe)
    inherited = _settings_of(weights, recipe, options.given) if options.settings else {}
    if options.settings:
        settings = choose_settings(recipe, chosen, fabric.device.type, options.given)
        recipe = override(recipe, settings | inherited)
    started = run.recipe_file.is_file() and (bool(run.checkpoints) or run.finished)
    if started:
        decided = options.minutes is not None or (options.settings and not _has_length(options.given))
        resized = options.minutes is not None and options.settings
        kept = {"accumulate": recipe.accumulate == "auto", "iterations": decided}
        kept |= {"min_size": resized, "max_size": resized}
        kept["detector.anchor_sizes"] = resized and hasattr(recipe.detector, "anchor_sizes")
        return override(recipe, {key: run.settings[key] for key, taken in kept.items() if taken})
    segments = recipe.detector.targets == "classes"
    if options.minutes is not None and (segments or world_size() > 1):
        unmeasured = "FCN" if segments else "several processes"
        raise UserError(f"--minutes: the time of {unmeasured} is not measured; give --iterations")
    if segments or world_size() > 1 or (options.quiet and options.minutes is None and not options.settings):
        return recipe

    def measured(recipe: FinetuneRecipe) -> Cost:
        cost = measure(recipe, fabric, data, val)
        return with_unlabelled(cost, recipe) if unlabelled else cost

    cost = measured(recipe)
    if options.settings and options.minutes is not None:
        fixed = {*options.given, *inherited}
        shown = smaller(recipe, 60 * options.minutes / cost.seconds, chosen, fabric.device.type, fixed)
        recipe, cost = (recipe, cost) if shown == recipe else (shown, measured(shown))
    if options.minutes is not None:
        steps = int(60 * options.minutes / cost.seconds)
        if steps < FEWEST_STEPS:
            raise UserError(
                f"--minutes {options.minutes:g}: room for {steps} steps of {cost.seconds:.2g} s, too few; "
                f"give {FEWEST_STEPS * cost.seconds / 60:.0f} minutes or more, or smaller images (--min-size)"
            )
        recipe = replace(recipe, iterations=steps)
    elif options.settings and fabric.device.type == "cpu" and not _has_length(options.given):
        recipe = within(recipe, cost, MOST_MINUTES)
    if cost.images < recipe.batch_size and recipe.accumulate == 1:
        raise UserError(
            f"memory: {recipe.batch_size} images at a time do not fit into {cost.available / 1e9:.1f} GB, "
            f"{cost.images} do; give --accumulate auto, or smaller images (--min-size, --max-size)"
        )
    if cost.images < recipe.batch_size and recipe.accumulate == "auto":
        recipe = replace(recipe, accumulate=recipe.batch_size // cost.images)
    steps = FinetuneSchedule.of(recipe, len(chosen)).steps
    say(describe_plan(recipe, cost, chosen, steps, weights, fabric.device), options.quiet)
    return recipe


def _settings_of(weights: str | None, recipe: FinetuneRecipe, given: Collection[str]) -> dict[str, Any]:
    """Image size and anchors of the run that the weights are of: its heads have learned at these."""
    source = recipe_of(weights)
    if not isinstance(source, FinetuneRecipe) or type(source.detector) is not type(recipe.detector):
        return {}
    settings: dict[str, Any] = {"min_size": source.min_size, "max_size": source.max_size}
    if hasattr(source.detector, "anchor_sizes"):
        settings["detector.anchor_sizes"] = source.detector.anchor_sizes
    return {key: value for key, value in settings.items() if key not in given}


def choose_settings(recipe: FinetuneRecipe, data: LabelledData, device: str, given: Collection[str]) -> dict[str, Any]:
    """Settings of a recipe that follow from the labels: image size, anchors, steps, checkpoints.

    Args:
        recipe: whose detector may have anchors.
        data: the labels to learn from.
        device: cpu or cuda.
        given: keys that the user has set, which stay.
    """
    if recipe.detector.targets == "classes":
        steps = int(np.clip(100 * np.sqrt(len(data)), FEWEST_BY_LABELS, MOST_STEPS[device]))
        return {} if _has_length(given) else {"iterations": steps}
    sides, shorter, ratio = _sizes(data)
    small = float(np.percentile(sides, 10))
    low, high = min(shorter, 224.0), min(1.5 * shorter, float(LONGEST_SIDE[device]))
    size = 16 * round(float(np.clip(shorter * SMALLEST / small, low, max(low, high))) / 16)
    size = recipe.min_size[-1] if "min_size" in given else size
    shown = small * size / shorter
    anchor = max([side for side in ANCHORS if side <= shown] or [ANCHORS[0]])
    steps = int(np.clip(100 * np.sqrt(len(sides)), FEWEST_BY_LABELS, MOST_STEPS[device]))
    settings = {
        "min_size": (size,),
        "max_size": int(size * min(ratio, 2.0)) + 1,
        "iterations": steps,
        "checkpoint_every": max(50, steps // 10),
    }
    if hasattr(recipe.detector, "anchor_sizes"):
        settings["detector.anchor_sizes"] = tuple(anchor * 2**level for level in range(5))
    if _has_length(given):
        del settings["iterations"]
    return {key: value for key, value in settings.items() if key not in given}


def smaller(
    recipe: FinetuneRecipe, steps: float, data: LabelledData, device: str, given: Collection[str]
) -> FinetuneRecipe:
    """The recipe with images so small that about `WORTHWHILE` steps fit into a time for `steps`, and their anchors."""
    if steps >= WORTHWHILE or {"min_size", "max_size"} & set(given):
        return recipe
    side = recipe.min_size[-1]
    size = min(side, max(LEAST_SIDE, 16 * int(side * np.sqrt(steps / WORTHWHILE) / 16)))
    shown = replace(recipe, min_size=(size,), max_size=int(size * recipe.max_size / side) + 1)
    kept = {*given, "min_size", "max_size", "iterations"}
    return override(shown, choose_settings(shown, data, device, kept))


def _has_length(given: Collection[str]) -> bool:
    return "epochs" in given or "iterations" in given


def _sizes(data: LabelledData) -> tuple[NDArray[np.float32], float, float]:
    """Sides of the objects (N,), the median shorter side of the images, px, and how much longer their other side is."""
    boxes = np.concatenate([image.boxes[image.learned] for image in data.images])
    extent = np.clip(boxes[:, 2:] - boxes[:, :2], 1, None)
    images = np.array([(image.width, image.height) for image in data.images], np.float64)
    ratios = images.max(1) / images.min(1)
    return np.sqrt(extent.prod(1)), float(np.median(images.min(1))), float(np.percentile(ratios, 95))


@dataclass(frozen=True)
class Cost:
    """Time and memory of a training step, measured on real images.

    Attributes:
        seconds: time of a step of the whole batch.
        memory: peak of the process with each batch in parts of `images`, bytes.
        available: memory that the process may come to, bytes.
        images: number of images in a part of the batch.
    """

    seconds: float
    memory: int
    available: int
    images: int


def measure(recipe: FinetuneRecipe, fabric: Fabric, data: LabelledData, val: LabelledData) -> Cost:
    """Take steps of two and four images, without moving a weight, and conclude on the batch.

    Raises:
        UserError: not even one image fits into memory.
    """
    task = DetectTask(recipe, fabric, Path(), data, val)
    dataset, sizes = task.dataset(recipe.augment), [image.width * image.height for image in task.chosen.images]
    largest = [int(row) for row in np.argsort(sizes)[::-1][:4]]
    samples = [dataset[0, row] for row in largest]
    samples = [samples[number % len(samples)] for number in range(4)]
    trunk = build_trunk(recipe.trunk, recipe.detector)
    keypoints = len(data.skeleton.names)
    detector = recipe.detector.build(trunk, len(data.classes), keypoints)
    module = fabric.setup_module(detector.to(fabric.device).to(memory_format=torch.channels_last)).train()
    states = 2 if recipe.optim.name == "adamw" else 1
    fixed = states * sum(p.numel() * p.element_size() for p in module.parameters())
    room = available_memory(fabric.device)
    share, peaks = recipe.batch_size, list[int]()
    seconds = 0.0
    for count in (2, 4):  # norms need two images
        if peaks and 2 * peaks[0] > ROOM * room:
            break  # four might take too much
        peaks.append(_peak(fabric, module, samples[:count]))  # kernels are chosen at the first step of a size
        began = time.perf_counter()
        _peak(fabric, module, samples[:count])
        seconds = (time.perf_counter() - began) / count
    each = (peaks[-1] - peaks[0]) / 2 if len(peaks) > 1 else peaks[0] / 2
    fitting = [images for images in range(1, share + 1) if share % images == 0]
    needed = {images: int(peaks[0] + (images - 2) * each) + fixed for images in fitting}
    fitting = [images for images in fitting if needed[images] <= ROOM * room]
    if fitting and 4 < max(fitting) <= 16:  # less time for each image than of four, the largest
        rows = np.linspace(0, len(sizes) - 1, max(fitting)).round().astype(int)
        part = [dataset[0, int(row)] for row in rows]
        began = time.perf_counter()
        peak = _peak(fabric, module, part)
        seconds = (time.perf_counter() - began) / len(part)
        needed[len(part)] = max(needed[len(part)], peak + fixed)
        fitting = [images for images in fitting if needed[images] <= ROOM * room]
    del module, detector, trunk
    release()
    if not fitting:
        raise UserError(
            f"memory: a step of one image needs {needed[1] / 1e9:.1f} GB, {room / 1e9:.1f} GB are free; give smaller "
            "images (--min-size, --max-size) or another --trunk.backbone, or close other programs"
        )
    return Cost(seconds * share, needed[max(fitting)], room, max(fitting))


def within(recipe: FinetuneRecipe, cost: Cost, minutes: float) -> FinetuneRecipe:
    """The recipe with as many of its steps as fit into the time, and at least `FEWEST_BY_LABELS`."""
    assert recipe.iterations is not None
    fitting = max(FEWEST_BY_LABELS, int(60 * minutes / cost.seconds))
    return replace(recipe, iterations=min(recipe.iterations, fitting))


def with_unlabelled(cost: Cost, recipe: FinetuneRecipe) -> Cost:
    """The mean cost of a step of self-training.

    After the burn-in a step learns from as many unlabelled images, which the teacher has looked at twice before,
    without gradients and so in a third of the time. Both kinds are micro-batches of their own, one after the other.
    """
    more = (1 - recipe.self_training.burn_in) * (1 + TEACHING)
    return replace(cost, seconds=cost.seconds * (1 + more))


def _peak(fabric: Fabric, module: torch.nn.Module, samples: Sequence[DetectionSample]) -> int:
    """Memory at the peak of a forward and backward pass, bytes."""
    reset_peak(fabric.device)
    try:
        loss = detector_losses(module, list(samples), fabric.device)["loss"]
        fabric.backward(loss)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 2**62
    module.zero_grad(set_to_none=True)
    return peak_memory(fabric.device)


def peak_memory(device: torch.device) -> int:
    """Most memory that was taken since `reset_peak`, bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or _status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Let the peak of memory start from what is used now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux
    except OSError:
        return


def _status(key: str) -> int:
    """A number of /proc/self/status, bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def available_memory(device: torch.device) -> int:
    """Memory that this process may come to, bytes: of the GPU, or of the machine and its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
        limits.append(free + _status("VmRSS"))
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, StopIteration, ValueError):  # not Linux, or no limit
        pass
    return min(limits)


def describe_plan(
    recipe: FinetuneRecipe, cost: Cost, data: LabelledData, steps: int, weights: str | None, device: torch.device
) -> str:
    """The plan in five lines for people."""
    boxes = sum(int(image.learned.sum()) for image in data.images)
    parts = "" if cost.images == recipe.batch_size else f", {cost.images} at a time"
    sizes = ", ".join(map(str, recipe.min_size))
    return (
        f"plan: {recipe.detector.kind} on {recipe.trunk.backbone}, "
        f"{f'weights {in_words(weights)}' if weights else 'from random weights'}\n"
        f"  {len(data)} labelled images, {boxes} objects, {len(data.classes)} classes; images at {sizes} px\n"
        f"  {steps} steps of {recipe.batch_size} images{parts}; {recipe.optim.name}, rate {recipe.optim.lr:g} for "
        f"{recipe.optim.reference_batch} images\n"
        f"  {device.type} ({resolve_precision(recipe.precision)}): {cost.seconds:.2g} s a step, "
        f"about {duration(cost.seconds * steps)} to train, and the time to measure AP\n"
        f"  memory: {cost.memory / 1e9:.1f} of {cost.available / 1e9:.1f} GB"
    )
