"""BYOL: Bootstrap Your Own Latent (Grill et al., 2020, arXiv:2006.07733).

An online network predicts the projection that a slowly moving copy of itself makes of another view of the same image:
L = 2 - 2 cos(q(z), z') (eq. 2), summed over both directions, with the target moved by an exponential average (eq. 1).
Trains the backbone's last feature map alone.

Departures from the authors' code: brightness is multiplicative (torchvision's and every port's) and not additive, and
the target starts as a copy of the online network and not from other random weights; the authors saw no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import byol_loss
from boxless.methods.contract import MethodOutput
from boxless.methods.parts import mlp, target_copy
from boxless.training.optim import ema_momentum, ema_update


@dataclass(frozen=True)
class BYOLConfig:
    """BYOL's hyper-parameters (paper, section 3.3 and appendix B)."""

    name: Literal["byol"] = "byol"
    size: int = 224
    """Of both views, px."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop shows."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """T of the paper's table 6."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """T' of the paper's table 6."""
    hidden: int = 4096
    """Width inside projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Of the target at the start, rising to 1; 0.996 for 1000 epochs, 0.99 for 300, 0.97 for 40."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Two random crops, augmented unequally."""
        return ViewSpec(self.size, self.first, self.scale), ViewSpec(self.size, self.second, self.scale)

    def at_size(self, size: int) -> "BYOLConfig":
        """The same method on views of another size: blur keeps its proportion to them."""
        first, second = (view.at_scale(size / self.size) for view in (self.first, self.second))
        return replace(self, size=size, first=first, second=second)

    def build(self, trunk: Trunk) -> "BYOL":
        """BYOL around the trunk's backbone."""
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
        """BYOL's loss of two views; boxes are not used."""
        h = [self._represent(self.encoder, view) for view in views]  # (B, body width) each
        with torch.no_grad():
            h_target = [self._represent(self.target_encoder, view) for view in views]
        return self.compare(h, h_target)

    def compare(self, h: Sequence[Tensor], h_target: Sequence[Tensor]) -> MethodOutput:
        """The loss of two views' representations (B, body width), by the online and by the target encoder."""
        z1, z2 = (self.projector(each) for each in h)  # (B, output)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.target_projector(each) for each in h_target)
        loss = byol_loss(p1, t2) + byol_loss(p2, t1)  # eq. 2, symmetrised
        return MethodOutput(loss, {}, p1.detach(), t2)

    def momentum(self, step: int, total_steps: int) -> float:
        """Of the target: rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target (eq. 1)."""
        momentum = self.momentum(step, total_steps)
        ema_update(self.target_encoder.parameters(), self.encoder.parameters(), momentum)
        ema_update(self.target_projector.parameters(), self.projector.parameters(), momentum)

    @staticmethod
    def _represent(encoder: nn.Module, view: View) -> Tensor:
        features: Tensor = encoder(view.image)["3"]
        return features.mean((2, 3))  # global average of C5
