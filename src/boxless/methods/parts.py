"""Pieces that several methods share: MLP heads and targets that follow."""

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor; no norm on the output."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def target_copy(online: Module) -> Module:
    """A copy that starts equal, gets no gradient and keeps its own batch statistics in training mode."""
    return copy.deepcopy(online).requires_grad_(False)
