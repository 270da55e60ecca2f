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
import itertools
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from environment import RESULTS, cores, facts, write
from training_step import Step, boxless_step, take_turn

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.byol import BYOLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.training.device import has_fast_bf16, resolve_precision


def ours(arch: str, size: int, batch: int) -> Step:
    optim = PretrainOptim("sgd", base_lr=0.06)
    return boxless_step(PretrainRecipe(BYOLConfig(size=size), TrunkConfig(backbone=arch), optim), batch)  # type: ignore[arg-type]


def theirs(
    arch: str,
    size: int,
    batch: int,
    layout: torch.memory_format = torch.contiguous_format,
    mixed: bool = False,
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Step:
    """A step of lightly's example.

    Args:
        arch: torchvision's ResNet.
        size: of the images, px.
        batch: images.
        layout: of weights and images.
        mixed: under autocast in bf16, as PyTorch Lightning's bf16-mixed has it.
        pairs: of views, from the CPU; else all steps share noise that is on the device already.
    """
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
    noise = tuple(torch.randn(batch, 3, size, size).to(device, memory_format=layout) for _ in range(2))
    views = itertools.repeat(noise) if pairs is None else pairs

    def step() -> torch.Tensor:
        x0, x1 = (x.to(device, memory_format=layout) for x in next(views))
        momentum = cosine_schedule(0, 10, 0.996, 1)  # once per epoch in the example
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            p0 = model(x0)
            z0 = model.forward_momentum(x0)
            p1 = model(x1)
            z1 = model.forward_momentum(x1)
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def plain(arch: str, size: int, batch: int, mixed: bool = False) -> Step:
    """A step of a plain PyTorch loop with the same network, for machines without lightly."""
    import torchvision

    def head(inputs: int) -> torch.nn.Sequential:
        hidden = torch.nn.Linear(inputs, 4096, bias=False), torch.nn.BatchNorm1d(4096), torch.nn.ReLU()
        return torch.nn.Sequential(*hidden, torch.nn.Linear(4096, 256))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = getattr(torchvision.models, arch)()
    width, body.fc = body.fc.in_features, torch.nn.Identity()
    online = torch.nn.Sequential(body, head(width)).to(device)
    predictor = head(256).to(device)
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], lr=0.06)
    views = [torch.randn(batch, 3, size, size, device=device) for _ in range(2)]

    def step() -> torch.Tensor:
        with torch.no_grad():
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.mul_(0.996).add_(new, alpha=0.004)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            p0, p1 = (predictor(online(view)) for view in views)
            z0, z1 = (target(view) for view in views)
            likeness = torch.nn.functional.cosine_similarity
            loss = -0.5 * (likeness(p0, z1).mean() + likeness(p1, z0).mean())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def theirs_channels_last(arch: str, size: int, batch: int) -> Step:
    return theirs(arch, size, batch, torch.channels_last)


SIDES = {"boxless": ours, "lightly": theirs, "lightly, channels_last": theirs_channels_last}


def measure(sides: list[str], sizes: tuple[str, int, int], threads: int, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            seconds[side].append(take_turn(partial(SIDES[side], *sizes), threads).seconds)
            print(f"repeat {repeat + 1}: {side} {seconds[side][-1]:.2f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--without-channels-last-lightly", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
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
    environment = {**facts("torch", "torchvision", "lightly"), "threads": arguments.threads}
    sizes_by_name = {"arch": sizes[0], "size": sizes[1], "batch": sizes[2], "repeats": arguments.repeats}
    content = {**sizes_by_name, "precision": precision, "images_per_second": results, "ratios": ratios}
    write(arguments.results / "byol_step.json", {**content, "environment": environment})


if __name__ == "__main__":
    main()
