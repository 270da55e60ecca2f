"""The norms of a trunk: batch, sync, frozen or group, in modules that are built with them and in those that are not."""

import math
from collections.abc import Callable
from typing import Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from boxless.errors import UserError

Norm = Literal["batch", "sync", "frozen", "group"]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """The constructor of a norm by its name; `sync` is converted when more than one process trains."""
    if norm == "frozen":
        return FrozenBatchNorm2d  # type: ignore[no-any-return]
    if norm == "group":
        return lambda channels: nn.GroupNorm(_groups(channels), channels)
    return nn.BatchNorm2d


def convert_norms(model: nn.Module, norm: Norm, name: str) -> None:
    """Put the asked norm where a timm model has batch norms, in place and under their names; others stay.

    timm's own batch norms may hold the activation that follows them, and its substitutes for them do too.

    Raises:
        UserError: if the model has batch norms that cannot be replaced.
    """
    from timm.layers.norm_act import freeze_batch_norm_2d

    if norm == "frozen":
        freeze_batch_norm_2d(model)  # type: ignore[no-untyped-call]
    elif norm == "group":
        _group(model)
    if norm in ("frozen", "group") and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise UserError(f"trunk.norm: {norm}; {name} has batch norms that cannot be replaced, choose batch or sync")


def _group(model: nn.Module) -> None:
    from timm.layers.norm_act import BatchNormAct2d, GroupNormAct

    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _group(child)
            continue
        channels = child.num_features
        if isinstance(child, BatchNormAct2d):
            grouped: nn.GroupNorm = GroupNormAct(channels, _groups(channels), eps=child.eps, apply_act=False)
            grouped.act, grouped.drop = child.act, child.drop
        else:
            grouped = nn.GroupNorm(_groups(channels), channels, eps=child.eps)
        grouped.weight, grouped.bias = child.weight, child.bias  # a last norm may start at zero
        setattr(model, name, grouped)


def _groups(channels: int) -> int:
    return math.gcd(32, channels)
