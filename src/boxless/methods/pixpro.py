"""PixPro: Propagate Yourself, pixel-level consistency (Xie et al., 2021, arXiv:2011.10043).

Cells of two views that lie close together in the source image should agree. On the online side each cell first mixes in
the features of similar cells (pixel propagation, eqs. 3 and 4), which adds smoothness to the loss (eq. 5). There are no
negatives. It trains only the backbone's last feature map; the authors never released their FPN pretraining.

Departures from the authors' code: distances are measured in source pixels, as in the paper (the code measures them in
the unit square, where the longer side of an image counts less); the projector's hidden layer is 2048 wide (code:
`hidden=4096`); values are propagated as they are (code: `normalize_values=True`). As in the code, distances are in
units of the larger view's cell diagonal, and the loss is twice eq. 5 so that both directions add up to BYOL's scale, -4
at best.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import pixpro_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import conv_mlp, move_targets, target_copy
from boxless.training.optim import ema_momentum


@dataclass(frozen=True)
class PixProConfig(UnequalCrops):
    """PixPro's hyper-parameters (paper, sections 3.2 and 4.1)."""

    name: Literal["pixpro"] = "pixpro"
    hidden: int = 2048
    """Width of the projector's hidden layer; 4096 in the official code."""
    output: int = 256
    """Width of projected cells."""
    threshold: float = 0.7
    """Distance T below which cells should agree, in diagonals of the larger cell (paper, table 3a)."""
    sharpness: float = 2.0
    """Exponent gamma of the similarity with which cells propagate (eq. 4)."""
    normalize_values: bool = False
    """Bring cells to unit length before they are propagated, as in the official code alone."""
    momentum: float = 0.99
    """Momentum of the target at the start; it rises to 1."""

    needs_boxes: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> "PixPro":
        """Build PixPro around the trunk's backbone."""
        return PixPro(trunk, self)


class Propagation(nn.Module):
    """The pixel propagation module (eqs. 3 and 4), with one linear layer as g."""

    def __init__(self, width: int, sharpness: float, normalize_values: bool) -> None:
        super().__init__()
        self.value = nn.Conv2d(width, width, 1)
        self.sharpness, self.normalize_values = sharpness, normalize_values

    def forward(self, x: Tensor) -> Tensor:
        """Replace cells (B, D, h, w) by sums over all cells of their map, weighted by similarity."""
        unit = normalize(x.flatten(2), dim=1)  # (B, D, h w)
        likeness = (unit.mT @ unit).relu() ** self.sharpness  # eq. 4: (B, h w, h w)
        value = self.value(x).flatten(2)  # g
        if self.normalize_values:
            value = normalize(value, dim=1)
        propagated: Tensor = value @ likeness  # eq. 3; likeness is symmetric
        return propagated.view(x.shape)


class PixPro(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: PixProConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.projector = conv_mlp(trunk.body_width, config.hidden, config.output)
        self.propagation = Propagation(config.output, config.sharpness, config.normalize_values)
        self.target_encoder = target_copy(self.encoder)
        self.target_projector = target_copy(self.projector)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two views; boxes are not used."""
        y1, y2 = (self.propagation(self.projector(self.encoder(view.image)["3"])) for view in views)  # (B, D, h, w)
        with torch.no_grad():
            t1, t2 = (self.target_projector(self.target_encoder(view.image)["3"]) for view in views)
            (c1, d1), (c2, d2) = (_places(view, *t1.shape[-2:]) for view in views)
            c1, d1, c2, d2 = (each.to(t1.device, non_blocking=True) for each in (c1, d1, c2, d2))
        diagonal, threshold = torch.maximum(d1, d2), self.config.threshold
        loss = pixpro_loss(y1, t2, c1, c2, diagonal, threshold) + pixpro_loss(y2, t1, c2, c1, diagonal, threshold)
        return MethodOutput(loss, {}, y1.detach().mean((2, 3)), t2.mean((2, 3)))  # eq. 5, doubled

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the target: BYOL's cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target."""
        move_targets(self, self.momentum(step, total_steps))


def _places(view: View, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Centres of a map's cells (B, rows, columns, 2) and the cells' diagonal (B,), source px."""
    quarters = view.cell_centres(2 * rows, 2 * columns)  # there are two each way, whatever the map's size
    diagonal = 2 * (quarters[:, 1, 1] - quarters[:, 0, 0]).norm(dim=-1)
    return view.cell_centres(rows, columns), diagonal
