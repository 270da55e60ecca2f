"""The parts of benchmarks/gpu.py: each takes sizes and a folder of images, and gives figures by name."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from byol_step import plain, theirs
from environment import installed
from gpu_detector import torchvision_step, with_boxless_step
from gpu_inside import byte_count, copy_rate, kernel_times, matrix_rate, step_flops, waits_of
from training_step import Step, boxless_step

from boxless.data.images import decode
from boxless.data.open import index_images
from boxless.data.sampler import TrainingSampler
from boxless.data.transforms.crops import cut, draw_window
from boxless.data.unlabelled import ViewDataset, view_batches
from boxless.methods.soco import SoCoConfig
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe
from boxless.training.device import make_fabric
from boxless.training.health import measure

Figures = dict[str, float]
By = Literal["processor", "gpu"]
"""What decodes: see the recipe's `decoder`."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is; `TINY` is for tests."""

    arch: str = "resnet50"
    size: int = 224
    batch: int = 256
    side: int = 800
    detector_batch: int = 16
    warmup: int = 15
    steps: int = 40
    hidden: int = 4096
    matrix: int = 8192
    workers: int = 16


TINY = Sizes("resnet18", 32, 4, 64, 2, 0, 1, 16, 64, 0)


def recipe_of(name: str, sizes: Sizes, compiled: bool) -> PretrainRecipe:
    """A paper's recipe at these sizes."""
    recipe = load(name, PretrainRecipe)
    trunk = replace(recipe.trunk, backbone=sizes.arch)
    narrow = {} if sizes.hidden == Sizes.hidden else {"fpn_channels": 16, "box_head_width": 32}
    method = replace(recipe.method.at_size(sizes.size), hidden=sizes.hidden)
    return replace(
        recipe,
        method=method,
        trunk=replace(trunk, **narrow),
        compile=compiled and torch.cuda.is_available(),
        workers=sizes.workers,
    )


def rate(make: Callable[[], Step], images: int, sizes: Sizes) -> Figures:
    """Images per second and the most memory, GiB."""
    step = make()
    for _ in range(sizes.warmup):
        step()
    float(step())  # which waits for the device
    began = time.perf_counter()
    for _ in range(sizes.steps):
        loss = step()
    value = float(loss)
    seconds = time.perf_counter() - began
    assert value == value, "the loss is not finite"
    figures = {"images/s": images * sizes.steps / seconds, "ms per step": 1000 * seconds / sizes.steps}
    if torch.cuda.is_available():
        figures["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def roofline(sizes: Sizes, images: str) -> Figures:
    """Rates of the card; FLOPs and bytes of an image in BYOL."""
    few = replace(sizes, batch=min(sizes.batch, 8))
    recipe = recipe_of("byol-r50", few, compiled=False)
    flops = step_flops(boxless_step(recipe, few.batch)) / few.batch
    moved = byte_count(boxless_step(recipe, few.batch)) / few.batch
    return {
        "TFLOP/s, bf16 matrix product": matrix_rate(sizes.matrix) / 1e12,
        "TB/s, copy, read and written": copy_rate(sizes.matrix) / 1e12,
        "GFLOP per image": flops / 1e9,
        "MB per image that eager operations read and write": moved / 1e6,
    }


def byol(compiled: bool, layout: torch.memory_format, sizes: Sizes, images: str) -> Figures:
    make = partial(boxless_step, recipe_of("byol-r50", sizes, compiled), sizes.batch, layout)
    return rate(make, sizes.batch, sizes)


def lightly_loop(mixed: bool, sizes: Sizes, images: str) -> Figures:
    known = installed("lightly") is not None
    step = partial(theirs if known else plain, sizes.arch, sizes.size, sizes.batch, mixed=mixed)
    return rate(step, sizes.batch, sizes) | ({} if known else {"plain PyTorch in its place": 1.0})


def byol_from_files(compiled: bool, by: By, sizes: Sizes, images: str) -> Figures:
    recipe = replace(recipe_of("byol-r50", sizes, compiled), decoder=by)
    return rate(partial(boxless_step, recipe, sizes.batch, files=index_images(images)), sizes.batch, sizes)


def lightly_from_files(sizes: Sizes, images: str) -> Figures:
    if not installed("lightly"):
        raise RuntimeError("lightly is not installed")
    pairs = lightly_pairs(sizes, images)
    return rate(partial(theirs, sizes.arch, sizes.size, sizes.batch, pairs=pairs), sizes.batch, sizes)


def lightly_pairs(sizes: Sizes, images: str) -> Iterator[Any]:
    """Views as in lightly's example, by as many workers as ours."""
    from lightly.data import LightlyDataset
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from torch.utils.data import DataLoader

    first, second = BYOLView1Transform(input_size=sizes.size), BYOLView2Transform(input_size=sizes.size)
    dataset = LightlyDataset(images, transform=BYOLTransform(first, second))
    loader = DataLoader(
        dataset, batch_size=sizes.batch, shuffle=True, drop_last=True, num_workers=sizes.workers,
        persistent_workers=sizes.workers > 0,
    )  # fmt: skip
    while True:
        for batch in loader:
            yield batch[0]


def input_alone(by: By, workers: int | None, sizes: Sizes, images: str) -> Figures:
    """Batches from files to the device, by at most so many workers, without training."""
    index = index_images(images)
    recipe = recipe_of("byol-r50", sizes, compiled=False)
    dataset = ViewDataset(index, recipe.method.views(), None, 0)
    order = TrainingSampler(len(index), sizes.batch, 0, sizes.warmup + 4 * sizes.steps, 0)
    workers = sizes.workers if workers is None else min(workers, sizes.workers)
    batches = view_batches(dataset, order, workers, make_fabric("32-true").device, by)
    for _ in range(sizes.warmup):
        next(batches)
    began = time.perf_counter()
    count = sum(len(batch.boxes) for batch in batches)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"images/s": count / (time.perf_counter() - began), "workers": workers}


def decoder(sizes: Sizes, images: str) -> Figures:
    """One core: decoding alone, decoding and BYOL's two crops, our whole sample; and the GPU's decoder."""
    torch.set_num_threads(1)
    index = index_images(images)
    rows = range(min(len(index), 128 if sizes.steps > 1 else 4))
    recipe = recipe_of("byol-r50", sizes, compiled=False)
    specs = recipe.method.views()
    dataset = ViewDataset(index, specs, None, 0)

    def both(row: int) -> None:
        image = decode(index.path(row))
        for spec in specs:
            none = np.zeros((0, 4), np.float32)
            cut(image, draw_window(spec, *image.shape[1::-1], none, np.random.default_rng(row)), spec.size)

    def speed(work: Callable[[int], object]) -> float:
        for row in rows:
            work(row)
        began = time.process_time()
        for row in rows:
            work(row)
        return len(rows) / (time.process_time() - began)

    figures = {
        "images/s and core, decoded": speed(lambda row: decode(index.path(row))),
        "images/s and core, decoded and cut twice": speed(both),
        "images/s and core, as boxless does it": speed(lambda row: dataset[0, row]),
    }
    if torch.cuda.is_available():
        from torchvision.io import decode_jpeg, read_file

        files = [read_file(index.path(row)) for row in rows]
        decode_jpeg(files, device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            decode_jpeg(files, device="cuda")
        torch.cuda.synchronize()
        figures["images/s, the GPU's decoder"] = 5 * len(files) / (time.perf_counter() - began)
    return figures


def soco(compiled: bool, sizes: Sizes, images: str) -> Figures:
    recipe = recipe_of("soco-r50-fpn", sizes, compiled)
    assert isinstance(recipe.method, SoCoConfig) and recipe.method.boxes == 4
    return rate(partial(boxless_step, recipe, sizes.batch), sizes.batch, sizes)


def waits(name: str, sizes: Sizes, images: str) -> Figures:
    """How often the host waits for the device in a step, and where."""
    return waits_of(boxless_step(recipe_of(name, sizes, compiled=False), min(sizes.batch, 32)))


def health(sizes: Sizes, images: str) -> Figures:
    """What a measure of a batch's embeddings takes, for which a run waits every few steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vectors = torch.randn(2, sizes.batch, 256, device=device)
    measure(*vectors)
    began = time.perf_counter()
    for _ in range(5):
        measure(*vectors)
    return {"ms": 200 * (time.perf_counter() - began)}


def faster_rcnn(sizes: Sizes, images: str) -> Figures:
    make = partial(with_boxless_step, sizes.arch, sizes.side, sizes.detector_batch)
    return rate(make, sizes.detector_batch, sizes)


def torchvision_loop(half: bool, sizes: Sizes, images: str) -> Figures:
    make = partial(torchvision_step, sizes.arch, sizes.side, sizes.detector_batch, half)
    return rate(make, sizes.detector_batch, sizes)


def profiled(compiled: bool, sizes: Sizes, images: str) -> Figures:
    """Milliseconds of a BYOL step by kernel group."""
    few = replace(sizes, steps=min(sizes.steps, 5))
    step = boxless_step(recipe_of("byol-r50", few, compiled), few.batch)
    for _ in range(few.warmup):
        step()
    return kernel_times(step, few.steps)


LAST, FIRST = torch.channels_last, torch.contiguous_format
PARTS: dict[str, dict[str, Callable[[Sizes, str], Figures]]] = {
    "roofline": {"roofline": roofline},
    "byol": {
        "byol, compiled": partial(byol, True, LAST),
        "byol, eager": partial(byol, False, LAST),
        "byol, eager, channels first": partial(byol, False, FIRST),
        "lightly as written": partial(lightly_loop, False),
        "lightly, bf16-mixed": partial(lightly_loop, True),
    },
    "files": {
        "byol from files": partial(byol_from_files, True, "processor"),
        "byol from files, decoder=gpu": partial(byol_from_files, True, "gpu"),
        "input alone": partial(input_alone, "processor", None),
        "input alone, decoder=gpu": partial(input_alone, "gpu", None),
        "input alone, 4 workers": partial(input_alone, "processor", 4),
        "input alone, decoder=gpu, 4 workers": partial(input_alone, "gpu", 4),
        "lightly from files": lightly_from_files,
    },
    "soco": {"soco, compiled": partial(soco, True), "soco, eager": partial(soco, False)},
    "detector": {
        "faster_rcnn": faster_rcnn,
        "torchvision's reference loop": partial(torchvision_loop, False),
        "torchvision's reference loop, fp16": partial(torchvision_loop, True),
    },
    "waits": {
        "waits, byol": partial(waits, "byol-r50"),
        "waits, soco": partial(waits, "soco-r50-fpn"),
        "health": health,
    },
    "decoder": {"decoder": decoder},
    "profile": {"profile, eager": partial(profiled, False), "profile, compiled": partial(profiled, True)},
}
