"""One BYOL training step of a ResNet-50: ours as `boxless pretrain` takes it, against lightly's documented example.

    pip install lightly
    python benchmarks/byol_step.py

Both sides take a synthetic batch, heads of the same width and SGD, and take turns: each turn is a fresh process with
the memory settings that the side brings, two steps to warm up and one that counts. Ours starts from uint8 views and
augments them within the step; lightly's does that in its data workers and starts from ready ones here. Its example:
https://docs.lightly.ai/self-supervised-learning/examples/byol.html

Prints, and writes to benchmarks/results/byol_step.json: images per second, median and range over the repeats. About
ten minutes and 8 GB on two cores. With --threads 1 the time is what the core worked, so that other programs matter
less. A third row shows lightly's example in channels_last, which its documentation does not use.
"""

import argparse
import copy
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Step = Callable[[], float]


def ours(arch: str, size: int, batch: int) -> Step:
    from boxless.data.loader import Batch
    from boxless.detectors.trunk import Trunk, TrunkConfig
    from boxless.geometry.affine import identity
    from boxless.geometry.view import View
    from boxless.methods.byol import BYOLConfig
    from boxless.recipes.schema import PretrainOptim, PretrainRecipe
    from boxless.runs.pretraining import Objective, make_optimizer
    from boxless.runs.setup import make_fabric

    config = BYOLConfig(size=size)
    recipe = PretrainRecipe(config, TrunkConfig(backbone=arch), PretrainOptim("sgd", base_lr=0.06))  # type: ignore[arg-type]
    fabric = make_fabric(recipe.precision)
    method = config.build(Trunk(recipe.trunk)).to(memory_format=torch.channels_last)
    module, optimizer = fabric.setup(method, make_optimizer(method, recipe.optim))
    objective = Objective(fabric, module, recipe, {})
    images = [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8) for _ in range(2)]
    views = tuple(View(image, identity(batch)) for image in images)
    data = Batch(views, torch.zeros(batch, 1, 4), torch.zeros(batch, 1, dtype=torch.bool), ()).to(fabric.device)

    def step() -> float:
        loss = objective(data, 0)["loss"]
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(0, 1000)
        return float(loss.detach())

    return step


def theirs(arch: str, size: int, batch: int, layout: torch.memory_format = torch.contiguous_format) -> Step:
    import torchvision
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.scheduler import cosine_schedule

    class BYOL(torch.nn.Module):
        def __init__(self, backbone: torch.nn.Module, width: int) -> None:
            super().__init__()
            self.backbone = backbone
            self.projection_head = BYOLProjectionHead(width, 4096, 256)
            self.prediction_head = BYOLPredictionHead(256, 4096, 256)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.backbone(x).flatten(start_dim=1)
            return self.prediction_head(self.projection_head(y))

        def forward_momentum(self, x: torch.Tensor) -> torch.Tensor:
            y = self.backbone_momentum(x).flatten(start_dim=1)
            return self.projection_head_momentum(y).detach()

    resnet = getattr(torchvision.models, arch)()
    model = BYOL(torch.nn.Sequential(*list(resnet.children())[:-1]), resnet.fc.in_features)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, memory_format=layout)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    x0, x1 = (torch.randn(batch, 3, size, size).to(device, memory_format=layout) for _ in range(2))

    def step() -> float:
        momentum = cosine_schedule(0, 10, 0.996, 1)  # once per epoch in the example
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        p0 = model(x0)
        z0 = model.forward_momentum(x0)
        p1 = model(x1)
        z1 = model.forward_momentum(x1)
        loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def theirs_channels_last(arch: str, size: int, batch: int) -> Step:
    return theirs(arch, size, batch, torch.channels_last)


SIDES = {"boxless": ours, "lightly": theirs, "lightly, channels_last": theirs_channels_last}


def turn(side: str, sizes: tuple[str, int, int], threads: int, pipe: Connection) -> None:
    """Send the seconds of a side's third step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = SIDES[side](*sizes)
    clock = time.process_time if threads == 1 and not torch.cuda.is_available() else time.perf_counter
    step()
    step()  # by now no tensor needs new memory
    start = clock()
    loss = step()  # fetching the loss waits for the device
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert loss == loss, side
    pipe.send(clock() - start)


def measure(sides: list[str], sizes: tuple[str, int, int], threads: int, repeats: int) -> dict[str, list[float]]:
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            here, there = spawn.Pipe(duplex=False)
            process = spawn.Process(target=turn, args=(side, sizes, threads, there), daemon=True)
            process.start()
            there.close()
            seconds[side].append(here.recv())
            process.join()
            print(f"repeat {repeat + 1}: {side} {seconds[side][-1]:.2f} s", flush=True)
    return seconds


def main() -> None:
    from boxless.runs.setup import has_fast_bf16, resolve_precision

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without-channels-last-lightly", action="store_true")
    arguments = parser.parse_args()

    sides = list(SIDES)[: 2 if arguments.without_channels_last_lightly else 3]
    sizes = (arguments.arch, arguments.size, arguments.batch)
    seconds = measure(sides, sizes, arguments.threads, arguments.repeats)
    speeds = {side: sorted(arguments.batch / s for s in values) for side, values in seconds.items()}
    results = {
        side: {"median": round(statistics.median(s), 3), "min": round(s[0], 3), "max": round(s[-1], 3)}
        for side, s in speeds.items()
    }
    print(f"{'images/s':28}{'median':>8}{'min':>8}{'max':>8}")
    for side, line in results.items():
        print(f"{side:28}{line['median']:8.2f}{line['min']:8.2f}{line['max']:8.2f}")
    ratios = {f"boxless over {s}": round(results["boxless"]["median"] / results[s]["median"], 2) for s in sides[1:]}
    for pair, ratio in ratios.items():
        print(f"{pair}: {ratio} times faster")
    precision = resolve_precision("auto")
    print(f"boxless in {precision}; this processor has {'' if has_fast_bf16() else 'no '}bf16")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "lightly")}
    environment = {"python": platform.python_version(), **versions, "machine": platform.machine()}
    environment |= {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    environment |= {"bf16": has_fast_bf16(), "threads": arguments.threads, "load": os.getloadavg()}
    facts = {"arch": sizes[0], "size": sizes[1], "batch": sizes[2], "repeats": arguments.repeats}
    out = Path(__file__).parent / "results" / "byol_step.json"
    out.parent.mkdir(exist_ok=True)
    content = {**facts, "precision": precision, "images_per_second": results, "ratios": ratios}
    out.write_text(json.dumps({**content, "environment": environment}, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
