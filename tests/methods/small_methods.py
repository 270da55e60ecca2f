"""Methods and views small enough for a test."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.all import METHODS
from boxless.methods.method import MethodConfig, MethodOutput

TRUNK = TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)


def sized(name: str, sizes: Mapping[str, object], **changes: object) -> MethodConfig:
    """A method's config with those of the given fields that it has."""
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    values = {key: value for key, value in sizes.items() if key in fields} | changes
    return dataclasses.replace(METHODS[name](), **values)


def built(config: MethodConfig, spread: float = 0.1) -> Any:
    """A method in training whose targets differ from what they follow, and whose norms and biases are not trivial."""
    torch.manual_seed(0)
    method = config.build(Trunk(TRUNK))
    assert isinstance(method, nn.Module)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + spread * torch.randn_like(parameter))
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return method.train()


def whole_views(count: int, *sizes: int, seed: int = 1) -> tuple[View, ...]:
    """Random pixels of all of their sources, a view of each size, px."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(View(torch.randn(count, 3, size, size, generator=generator), identity(count)) for size in sizes)


def run(method: Any, views: tuple[View, ...], seed: int = 0) -> MethodOutput:
    """What a method makes of views without boxes."""
    nowhere = torch.zeros(len(views[0].image), 0, 4)
    return method(views, nowhere, nowhere[..., 0] > 0, torch.Generator().manual_seed(seed))


def pooled_alone(encoder: nn.Module, image: Tensor) -> Tensor:
    """(1, C), the average of one image's C5 that no other image has a part in."""
    return encoder(image[None])["3"][0].flatten(1).mean(1)[None]
