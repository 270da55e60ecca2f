"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al., 2021, arXiv:2103.03230).

The cross-correlation C of two views' projections, over the batch, should be the identity:
L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2 (eq. 1). It trains only the backbone's last feature map.

Batch and gradient are those of all processes. In the authors' code the gradient is not: autograd does not see their
all-reduce, so W processes get 1 / W of the gradient. LARS undoes this for weight matrices, but not for biases and
norms, whose learning rate the authors tuned with it: 0.0048 there is 0.0048 / W here (`optim.bias_lr_scale` in the
recipes). Crops are scaled bilinearly; the authors use cubic splines.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import barlow_twins_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import deep_mlp, pooled
from boxless.training.distributed import gather


@dataclass(frozen=True)
class BarlowTwinsConfig(UnequalCrops):
    """Barlow Twins' hyper-parameters (paper, section 2.2)."""

    name: Literal["barlow"] = "barlow"
    hidden: int = 8192
    """Width of the projector's hidden layers."""
    output: int = 8192
    """Width of the projections."""
    redundancy_weight: float = 0.005
    """Weight lambda of the off-diagonal terms; 0.0051 in the code."""

    needs_boxes: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> "BarlowTwins":
        """Build Barlow Twins around the trunk's backbone."""
        return BarlowTwins(trunk, self)


class BarlowTwins(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: BarlowTwinsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.projector = deep_mlp(trunk.body_width, config.hidden, config.output, bias=False)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two views; boxes are not used."""
        z1, z2 = (self.projector(pooled(self.encoder, view.image)) for view in views)  # (B, output)
        loss = barlow_twins_loss(gather(z1), gather(z2), self.config.redundancy_weight)  # eq. 1
        return MethodOutput(loss, {}, z1.detach(), z2.detach())

    def after_step(self, step: int, total_steps: int) -> None:
        """Do nothing: Barlow Twins has no target."""
