"""Pieces that several methods share: MLP heads, targets that follow, queues of negatives."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Module = TypeVar("Module", bound=nn.Module)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor; no norm on the output."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def target_copy(online: Module) -> Module:
    """A copy that starts equal, gets no gradient and keeps its own batch statistics in training mode."""
    return copy.deepcopy(online).requires_grad_(False)


class Queue(nn.Module):
    """The latest keys of past batches, as negatives (MoCo, section 3.1): a ring of L2-normalised vectors.

    Attributes:
        vectors: (K, D), unit length, random at the start.
    """

    vectors: Tensor
    next_row: Tensor

    def __init__(self, length: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", normalize(torch.randn(length, dimensions), dim=1))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put keys (N, D), of all processes and unit length, in place of the oldest ones."""
        length = len(self.vectors)
        keys = keys[-length:]
        rows = (self.next_row + torch.arange(len(keys), device=keys.device)) % length
        self.vectors[rows] = keys.detach().to(self.vectors.dtype)
        self.next_row.copy_((self.next_row + len(keys)) % length)
