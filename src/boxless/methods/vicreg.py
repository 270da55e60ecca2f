"""VICReg: Variance-Invariance-Covariance Regularization (Bardes et al., 2022, arXiv:2105.04906).

Two views' embeddings should be equal (eq. 5), each dimension should vary over the batch (eq. 1), and no two should vary
together (eqs. 3 and 4): L = lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')) (eq. 6). Trains the backbone's last
feature map alone.

As in the authors' code, for which the weights 25, 25 and 1 were found, s is a mean over dimensions too and the variance
terms of the two views are averaged. The batch is that of all processes, and so is the gradient.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import vicreg_loss
from boxless.methods.contract import MethodOutput
from boxless.methods.parts import deep_mlp, pooled
from boxless.training.distributed import gather


@dataclass(frozen=True)
class VICRegConfig:
    """VICReg's hyper-parameters (paper, section 4.2)."""

    name: Literal["vicreg"] = "vicreg"
    size: int = 224
    """Of both views, px."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop shows."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """BYOL's T, as in the code."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """BYOL's T', as in the code."""
    hidden: int = 8192
    """Width inside the expander."""
    output: int = 8192
    """Width of the embeddings."""
    invariance_weight: float = 25.0
    """lambda."""
    variance_weight: float = 25.0
    """mu."""
    covariance_weight: float = 1.0
    """nu."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Two random crops, augmented unequally."""
        return ViewSpec(self.size, self.first, self.scale), ViewSpec(self.size, self.second, self.scale)

    def at_size(self, size: int) -> "VICRegConfig":
        """The same method on views of another size: blur keeps its proportion to them."""
        first, second = (view.at_scale(size / self.size) for view in (self.first, self.second))
        return replace(self, size=size, first=first, second=second)

    def build(self, trunk: Trunk) -> "VICReg":
        """VICReg around the trunk's backbone."""
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
        """VICReg's loss of two views; boxes are not used."""
        z1, z2 = (self.expander(pooled(self.encoder, view.image)) for view in views)  # (B, output)
        weights = (self.config.invariance_weight, self.config.variance_weight, self.config.covariance_weight)
        loss = vicreg_loss(gather(z1), gather(z2), *weights)  # eq. 6
        return MethodOutput(loss, {}, z1.detach(), z2.detach())

    def after_step(self, step: int, total_steps: int) -> None:
        """Nothing: VICReg has no target."""
