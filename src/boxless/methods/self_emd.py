"""Self-EMD: Self-Supervised Object Detection without ImageNet (Liu et al., 2021, arXiv:2011.13677).

BYOL on maps: the cells of one view's map are moved to those of another's by the cheapest transport plan (eqs. 4 to 11),
which finds cells that show the same thing. A cell's weight is its similarity to the other view's vector, from BYOL's
own heads and loss, which run in parallel (eq. 13). Pooled cells take part in the transport (spatial pyramid crops), and
so does a small third view. It trains only the backbone's last feature map.

The authors released no code, and the paper leaves open what follows. We chose: marginals from cosines,
scaled to a sum of 1, as in DeepEMD, on which it builds; no gradient through the plan; a regularisation of 20, since
sharper plans do not converge in ten iterations; separate heads of BYOL's sizes for maps and vectors; an independent
crop as third view. Every view predicts every other one, and all terms have the same weight.
"""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import byol_loss, emd_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import conv_mlp, mlp, move_targets, target_copy
from boxless.training.optim import ema_momentum


@dataclass(frozen=True)
class SelfEMDConfig(UnequalCrops):
    """Self-EMD's hyper-parameters (paper, sections 3.2, 3.3 and 4.1, and BYOL's for everything else)."""

    name: Literal["self-emd"] = "self-emd"
    small_size: int = 112
    """Size of the third view, px; it is augmented as the second."""
    third_view: bool = True
    """Take a third view; it is worth 0.3 AP together with the pyramid (paper, table 2)."""
    pyramid: bool = True
    """Add cells that are averages of several (spatial pyramid crops)."""
    marginals: Literal["vector", "mean"] = "vector"
    """Weights for the cells of the other view: by its vector from BYOL's branch (eq. 13), or by its mean cell, without
    that branch and its loss (eq. 12; table 2's row, 2.3 AP worse, has neither pyramid nor third view)."""
    hidden: int = 4096
    """Width of the hidden layers of projectors and predictors (BYOL)."""
    output: int = 256
    """Width of projections and predictions (BYOL)."""
    regularization: float = 20.0
    """Regularisation lambda of eq. 6; the paper gives no value."""
    iterations: int = 10
    """Number T of Sinkhorn-Knopp iterations."""
    momentum: float = 0.99
    """Momentum of the target at the start; it rises to 1 (BYOL, for 300 epochs)."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Two random crops, augmented differently, and a small one."""
        first, second = super().views()
        return (first, second, replace(second, size=self.small_size)) if self.third_view else (first, second)

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with blur and the third view scaled to match."""
        return replace(super().at_size(size), small_size=size // 2)

    def build(self, trunk: Trunk) -> "SelfEMD":
        """Build Self-EMD around the trunk's backbone."""
        return SelfEMD(trunk, self)


class SelfEMD(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: SelfEMDConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.with_vectors = config.marginals == "vector"
        if self.with_vectors:
            self.projector = mlp(trunk.body_width, config.hidden, config.output)
            self.predictor = mlp(config.output, config.hidden, config.output)
            self.target_projector = target_copy(self.projector)
        self.dense_projector = conv_mlp(trunk.body_width, config.hidden, config.output)
        self.dense_predictor = conv_mlp(config.output, config.hidden, config.output)
        self.target_encoder = target_copy(self.encoder)
        self.target_dense_projector = target_copy(self.dense_projector)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two or three views; boxes are not used."""
        online, target = [], []  # each view's vector (B, output) and nodes (B, output, n), n by the view's size
        for view in views:
            features = self.encoder(view.image)["3"]  # C5: (B, C, h, w)
            cells = self.dense_predictor(self.dense_projector(features))
            vector = cells.mean((2, 3))  # eq. 12
            if self.with_vectors:
                vector = self.predictor(self.projector(features.mean((2, 3))))  # eq. 13
            online.append((vector, self._nodes(cells)))
            with torch.no_grad():
                features = self.target_encoder(view.image)["3"]
                cells = self.target_dense_projector(features)
                vector = cells.mean((2, 3))
                if self.with_vectors:
                    vector = self.target_projector(features.mean((2, 3)))
                target.append((vector, self._nodes(cells)))
        byol = emd = online[0][0].new_zeros(())
        for a, b in permutations(range(len(views)), 2):
            (v_x, x), (v_y, y) = online[a], target[b]
            if self.with_vectors:
                byol = byol + byol_loss(v_x, v_y)  # eq. 2
            emd = emd + emd_loss(x, y, v_x, v_y, self.config.regularization, self.config.iterations)  # eqs. 4 to 11
        terms = {"byol": byol.detach(), "emd": emd.detach()}
        return MethodOutput(byol + emd, terms, online[0][0].detach(), target[1][0])

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the target: BYOL's cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target (eq. 1)."""
        move_targets(self, self.momentum(step, total_steps))

    def _nodes(self, cells: Tensor) -> Tensor:
        """Flatten cells (B, D, h, w), and their averages if configured, to (B, D, n): 7x7, 5x5 and 3x3 for 7x7."""
        side = min(cells.shape[-2:])
        if not self.config.pyramid or side == 1:
            return cells.flatten(2)
        windows = ((3, 1), (3, 2)) if side > 4 else ((2, 1),)  # width and stride; 4x4 gives 3x3 too
        return torch.cat([cells.flatten(2), *(avg_pool2d(cells, *window).flatten(2) for window in windows)], 2)
