"""A training step as `boxless pretrain` takes it, on synthetic images, and turns of any step in fresh processes."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxless.data.index import ImageIndex
from boxless.data.sampler import TrainingSampler
from boxless.data.unlabelled import Batch, ViewDataset, view_batches
from boxless.detectors.trunk import Trunk
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.method import MethodConfig
from boxless.proposals.baselines import random_boxes
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.compiling import compile_parts
from boxless.tasks.pretrain import PretrainTask, make_pretrain_optimizer
from boxless.training.device import make_fabric, worker_count

Step = Callable[[], Tensor]
"""Takes a step and gives its loss, on the device and perhaps not there yet."""


class Turn(NamedTuple):
    """What one step took.

    Attributes:
        seconds: of the step.
        memory: most that was held since before the model was built, MiB, on the GPU where there is one.
        load: of the machine, mean over the last minute.
    """

    seconds: float
    memory: float
    load: float


def boxless_step(
    recipe: PretrainRecipe,
    batch: int,
    layout: torch.memory_format = torch.channels_last,
    files: ImageIndex | None = None,
) -> Step:
    """A step of a recipe from uint8 views on: augmentation, forward and backward pass, optimizer, targets.

    Args:
        recipe: compiles where it says so.
        batch: images.
        layout: of the weights.
        files: to read the images from, as a run does; else all steps share noise that is on the device already.
    """
    fabric = make_fabric(recipe.precision)
    torch.backends.cudnn.benchmark = True
    trunk = Trunk(recipe.trunk)
    method = recipe.method.build(trunk)
    assert isinstance(method, nn.Module)
    module = method.to(memory_format=layout)
    if recipe.compile:
        compile_parts(module, trunk)
    placed, optimizer = fabric.setup(module, make_pretrain_optimizer(module, recipe.optim))
    task = PretrainTask(recipe, fabric, Path())
    batches: Iterator[Batch] = itertools.repeat(synthetic(recipe.method, batch).to(fabric.device))
    if files is not None:
        dataset = ViewDataset(files, recipe.method.views(), None, recipe.seed)
        order = TrainingSampler(len(files), batch, 0, 1_000_000, recipe.seed)
        workers = worker_count(recipe.workers, 16)
        batches = view_batches(dataset, order, workers, fabric.device, recipe.decoder)
    numbers = itertools.count()

    def step() -> Tensor:
        loss = task.loss(placed, next(batches), next(numbers))["loss"]
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(0, 1000)
        return loss.detach()

    return step


def synthetic(config: MethodConfig, batch: int) -> Batch:
    """Noise as a method's views, each of which shows the whole image, and K random boxes of each image."""
    specs = config.views()
    side = max(spec.size for spec in specs)
    whole = torch.tensor([[0.0, 0.0, side, side]]).expand(batch, 4)
    views = tuple(
        None
        if spec.resize_of is not None
        else View(
            torch.randint(0, 256, (batch, 3, spec.size, spec.size), dtype=torch.uint8),
            crop_and_resize(whole, spec.size, spec.size),
        )
        for spec in specs
    )
    count = int(getattr(config, "boxes", 1))
    boxes = torch.stack([torch.from_numpy(random_boxes(side, side, count, seed)) for seed in range(batch)])
    valid = torch.full((batch, count), config.needs_boxes)
    return Batch(views, boxes, valid, ())


def take_turn(make: Callable[[], Step], threads: int) -> Turn:
    """Measure the third step of what `make` returns, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_turn, args=(make, threads, there), daemon=True)
    process.start()
    there.close()
    try:
        return Turn(*here.recv())
    except EOFError:
        raise RuntimeError("the process ended without a result") from None
    finally:
        process.join()


def _turn(make: Callable[[], Step], threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    before = _resident("VmRSS")
    step = make()
    clock = time.process_time if threads == 1 and not on_gpu else time.perf_counter
    step()
    float(step())  # by now no tensor needs new memory
    start = clock()
    loss = float(step())  # which waits for the device
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - start
    assert loss == loss
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident("VmHWM") - before
    pipe.send((seconds, memory, os.getloadavg()[0]))


def _resident(field: str) -> float:
    """MiB that this process holds (VmRSS) or held at most (VmHWM; getrusage's maximum may be the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
