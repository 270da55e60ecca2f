"""VICReg: Variance-Invariance-Covariance Regularization (Bardes et al., 2022, arXiv:2105.04906).

Two views' embeddings should be equal (eq. 5), each dimension should vary over the batch (eq. 1), and no two should vary
together (eqs. 3 and 4): L = lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')) (eq. 6). It trains only the
backbone's last feature map.

As in the authors' code, for which the weights 25, 25 and 1 were found, s is a mean over dimensions too and the variance
terms of the two views are averaged. Batch and gradient are those of all processes. Crops are scaled
bilinearly; the code uses cubic splines.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import vicreg_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import deep_mlp, pooled
from boxless.training.distributed import gather


@dataclass(frozen=True)
class VICRegConfig(UnequalCrops):
    """VICReg's hyper-parameters (paper, section 4.2; the views are the code's)."""

    name: Literal["vicreg"] = "vicreg"
    hidden: int = 8192
    """Width of the expander's hidden layers."""
    output: int = 8192
    """Width of the embeddings."""
    invariance_weight: float = 25.0
    """Weight lambda of the invariance term."""
    variance_weight: float = 25.0
    """Weight mu of the variance term."""
    covariance_weight: float = 1.0
    """Weight nu of the covariance term."""

    needs_boxes: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> "VICReg":
        """Build VICReg around the trunk's backbone."""
        return VICReg(trunk, self)


class VICReg(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: VICRegConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.expander = deep_mlp(trunk.body_width, config.hidden, config.output, bias=True)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two views; boxes are not used."""
        z1, z2 = (self.expander(pooled(self.encoder, view.image)) for view in views)  # (B, output)
        weights = (self.config.invariance_weight, self.config.variance_weight, self.config.covariance_weight)
        loss = vicreg_loss(gather(z1), gather(z2), *weights)  # eq. 6
        return MethodOutput(loss, {}, z1.detach(), z2.detach())

    def after_step(self, step: int, total_steps: int) -> None:
        """Do nothing: VICReg has no target."""
