"""BYOL: Bootstrap Your Own Latent (Grill et al., 2020, arXiv:2006.07733).

An online network predicts the projection that a slowly moving copy of itself makes of another view of the same image:
L = 2 - 2 cos(q(z), z') (eq. 2), summed over both directions, with the target moved by an exponential average (eq. 1).
It trains only the backbone's last feature map.

Departures from the authors' code: crops are scaled bilinearly instead of by cubic splines, brightness is multiplicative
(as in torchvision and every port) instead of additive, and the target starts as a copy of the online network instead of
other random weights; the authors saw no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import byol_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import mlp, move_targets, pooled, target_copy
from boxless.training.optim import ema_momentum


@dataclass(frozen=True)
class BYOLConfig(UnequalCrops):
    """BYOL's hyper-parameters (paper, section 3.3 and appendix B)."""

    name: Literal["byol"] = "byol"
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Momentum of the target at the start; it rises to 1. 0.996 for 1000 epochs, 0.99 for 300, 0.97 for 40."""

    needs_boxes: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> "BYOL":
        """Build BYOL around the trunk's backbone."""
        return BYOL(trunk, self)


class BYOL(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: BYOLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.projector = mlp(trunk.body_width, config.hidden, config.output)
        self.predictor = mlp(config.output, config.hidden, config.output)
        self.target_encoder = target_copy(self.encoder)
        self.target_projector = target_copy(self.projector)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two views; boxes are not used."""
        h = [pooled(self.encoder, view.image) for view in views]  # (B, body width) each
        with torch.no_grad():
            h_target = [pooled(self.target_encoder, view.image) for view in views]
        return self.compare(h, h_target)

    def compare(self, h: Sequence[Tensor], h_target: Sequence[Tensor]) -> MethodOutput:
        """Compute the loss of two views' representations (B, body width) by the online and the target encoder."""
        z1, z2 = (self.projector(each) for each in h)  # (B, output)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.target_projector(each) for each in h_target)
        loss = byol_loss(p1, t2) + byol_loss(p2, t1)  # eq. 2, symmetrised
        return MethodOutput(loss, {}, p1.detach(), t2)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the target, which rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target (eq. 1)."""
        move_targets(self, self.momentum(step, total_steps))
