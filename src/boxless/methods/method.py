"""The protocol of a method: a module that turns views and boxes into a loss."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View


class MethodOutput(NamedTuple):
    """The result of one forward pass of a method.

    Attributes:
        loss: the scalar to minimise.
        terms: its named parts, for the log.
        online: (N, D), embeddings that are trained towards `target`, without gradient; the health report measures them.
        target: (N, D), the embeddings that they should match.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    online: Tensor | None = None
    target: Tensor | None = None


@runtime_checkable
class MethodConfig(Protocol):
    """A method's hyper-parameters; each field says where its value comes from."""

    @property
    def name(self) -> str:
        """The method's name in recipes."""

    def views(self) -> tuple[ViewSpec, ...]:
        """The views of each image that the method uses, in the paper's order."""

    def at_size(self, size: int) -> "MethodConfig":
        """The same method on full-size views of another size, px."""

    def build(self, trunk: Trunk) -> "Method":
        """Build the method around a trunk."""

    @property
    def needs_boxes(self) -> bool:
        """True if the method needs proposals."""


class Method(Protocol):
    """A method trains parts of a trunk from views and boxes, without labels. Implementations are `nn.Module`s."""

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the trained parts, as in `Trunk.parts`."""

    def __call__(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of a batch.

        Args:
            views: in the order of `MethodConfig.views`, images normalised.
            boxes: (B, N, 4), proposals in source px, padded; on the CPU, like all positions (see `View`).
            valid: (B, N), false for padding; on the CPU.
            generator: on the CPU, seeded by the step, for everything random in the method.
        """

    def after_step(self, step: int, total_steps: int) -> None:
        """Move targets, once per optimizer step; `step` counts from 0."""


@runtime_checkable
class MovingTarget(Protocol):
    """A method whose target follows the online network."""

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the target at a step, 0..1."""


@runtime_checkable
class GroupedNorms(Protocol):
    """A configuration whose batch norms keep to parts of the batch, as MoCo's do."""

    @property
    def norm_groups(self) -> int:
        """Parts of the batch, over all processes, with batch statistics of their own."""
