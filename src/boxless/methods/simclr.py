"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020, arXiv:2002.05709).

Two views of an image must find each other among all other views of the batch: for each of the 2N views,
l(i, j) = -log(e^{cos(z_i, z_j) / t} / sum_{k != i} e^{cos(z_i, z_k) / t}) (eq. 1), averaged (Alg. 1). It trains only
the backbone's last feature map.

The batch is that of all processes, and both views share one pass and its batch statistics, as in the authors' code. The
projector is also the code's, with norms that the paper does not mention. The code's loss is twice this one: it adds the
means of the two views' anchors, while Alg. 1 averages them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.data.transforms.color import Photometric
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import nt_xent_loss
from boxless.methods.crops import EqualCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import pooled
from boxless.training.distributed import gather


@dataclass(frozen=True)
class SimCLRConfig(EqualCrops):
    """SimCLR's hyper-parameters (paper, section 2.2 and appendix A; code)."""

    name: Literal["simclr"] = "simclr"
    photometric: Photometric = Photometric(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)  # noqa: RUF009
    """Colours and blur of both views (appendix A, strength 1)."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    output: int = 128
    """Width of the projections."""
    temperature: float = 0.1
    """Temperature t; 0.1 is the best of table 5 for normalised projections."""

    needs_boxes: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> "SimCLR":
        """Build SimCLR around the trunk's backbone."""
        return SimCLR(trunk, self)


class SimCLR(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        last = nn.BatchNorm1d(config.output)
        last.bias.requires_grad_(False)  # a scale but no shift
        self.projector = nn.Sequential(
            *(nn.Linear(trunk.body_width, config.hidden, bias=False), nn.BatchNorm1d(config.hidden)),
            nn.ReLU(inplace=True),
            *(nn.Linear(config.hidden, config.output, bias=False), last),
        )

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two views; boxes are not used."""
        x = torch.cat([view.image for view in views])  # (2B, 3, size, size)
        z1, z2 = self.projector(pooled(self.encoder, x)).chunk(2)  # (B, output) each
        loss = nt_xent_loss(gather(z1), gather(z2), self.config.temperature)  # Alg. 1
        return MethodOutput(loss, {}, z1.detach(), z2.detach())

    def after_step(self, step: int, total_steps: int) -> None:
        """Do nothing: SimCLR has no target."""
