"""Modules that several methods share: MLP heads, EMA targets, queues of negatives."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.geometry.view import View
from boxless.training.distributed import agreed, gather, own, world_size
from boxless.training.optim import ema_update

Module = TypeVar("Module", bound=nn.Module)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor; no norm on the output."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def deep_mlp(inputs: int, hidden: int, outputs: int, bias: bool) -> nn.Sequential:
    """Three linear layers, batch norm and ReLU after the first two: the projector of Barlow Twins and VICReg.

    `bias` applies to the first two layers; the last has none.
    """
    return nn.Sequential(
        *(nn.Linear(inputs, hidden, bias), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, hidden, bias), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, outputs, bias=False),
    )


def plain_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, linear, without norm: MoCo v2's head."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


def pooled(encoder: nn.Module, image: Tensor) -> Tensor:
    """Global average of C5, (B, body width)."""
    features: Tensor = encoder(image)["3"]
    return features.mean((2, 3))


def conv_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """`mlp` on every cell of a map: (B, inputs, h, w) to (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, outputs, 1)
    )


def target_copy(online: Module) -> Module:
    """Copy a module as an EMA target, without gradient and with its own batch statistics in training mode."""
    return copy.deepcopy(online).requires_grad_(False)


def move_targets(method: nn.Module, momentum: float) -> None:
    """Move each module `target_x`, anywhere in the method, towards the module `x` beside it (see `ema_update`)."""
    targets: list[Tensor] = []
    online: list[Tensor] = []
    for owner in method.modules():
        for name, part in owner.named_children():
            if name.startswith("target_"):
                targets += part.parameters()
                online += owner.get_submodule(name.removeprefix("target_")).parameters()
    ema_update(targets, online, momentum)


class Shuffle:
    """A random redistribution of rows over all processes (MoCo, section 3.3).

    A key's batch norms then see other images than its query's, so batch statistics cannot give the pair away.

    Args:
        rows: number of rows on each process.
        generator: on the CPU; the first process's draw is used.
        device: device of the rows.
    """

    def __init__(self, rows: int, generator: torch.Generator, device: torch.device) -> None:
        order = torch.randperm(rows * world_size(), generator=generator)
        self.order = agreed(order.to(device, non_blocking=True))

    def __call__(self, values: Tensor) -> Tensor:
        """This process's share (N, ...) of the shuffled rows."""
        return own(gather(values)[self.order])

    def undo(self, values: Tensor) -> Tensor:
        """All processes' rows (W * N, ...) in the original order; `own` takes this process's."""
        return gather(values)[self.order.argsort()]


def in_groups(encode: Callable[[Tensor], Tensor], images: Tensor, groups: int) -> Tensor:
    """Encode images (B, ...) in parts of at least two images, each with its own batch statistics.

    Args:
        encode: the network with the batch norms.
        images: images of this process.
        groups: number of parts of the batch over all processes.
    """
    parts = images.tensor_split(max(1, min(groups // world_size(), len(images) // 2)))
    return torch.cat([encode(part) for part in parts])


class Queue(nn.Module):
    """The latest keys of past batches, used as negatives (MoCo, section 3.1): a ring of L2-normalised vectors.

    Keys are (N, D), from all processes and of unit length.

    Attributes:
        vectors: (K, D), unit length, random at the start.
    """

    vectors: Tensor
    next_row: Tensor

    def __init__(self, length: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", normalize(torch.randn(length, dimensions), dim=1))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.long))
        self._held: list[Tensor] = []  # of the batches since the last step

    def hold(self, keys: Tensor) -> None:
        """Keep a batch's keys until its step is over; only in training."""
        if self.training:
            self._held.append(keys)

    def push_held(self) -> None:
        """Push the keys of a step that is over."""
        for keys in self._held:
            self.push(keys)
        self._held.clear()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest keys."""
        length = len(self.vectors)
        keys = keys[-length:]
        rows = (self.next_row + torch.arange(len(keys), device=keys.device)) % length
        self.vectors[rows] = keys.detach().to(self.vectors.dtype)
        self.next_row.copy_((self.next_row + len(keys)) % length)


def crop_maps(encoder: nn.Module, views: Sequence[View]) -> list[Tensor]:
    """C5 of each crop, (B, width, h, w). Neighbours of one size share a pass and its batch statistics."""
    maps: list[Tensor] = []
    for _, group in groupby(views, lambda view: view.size):
        crops = [view.image for view in group]
        maps += encoder(torch.cat(crops))["3"].chunk(len(crops))
    return maps


def nothing(module: nn.Module) -> Tensor:
    """A loss of 0 that depends on every trained parameter, as distributed training requires."""
    return torch.stack([p.sum() for p in module.parameters() if p.requires_grad]).sum() * 0


def held(weight: Tensor, hold: bool) -> Tensor:
    """The weight, or its values with zero gradient: without any gradient, distributed training would wait."""
    return weight.detach() + 0 * weight if hold else weight


def with_all(vectors: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """The same vectors, made to depend on all maps with zero gradient if several processes train.

    In the backward pass, norms over all processes wait for all of them, but some may have no box on a map.
    """
    if world_size() == 1 or not torch.is_grad_enabled():
        return vectors
    return vectors + 0 * torch.stack([each.sum(dtype=torch.float32) for each in maps.values()]).sum()


class Number(nn.Module):
    """A number in the checkpoint that stays on the CPU, so reading it never waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0.0

    def get_extra_state(self) -> Tensor:
        """The value, for `state_dict`."""
        return torch.tensor(self.value, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the value from `load_state_dict`."""
        self.value = float(state)
