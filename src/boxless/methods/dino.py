"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021, arXiv:2104.14294).

A student sees all crops of an image, large and small; the teacher, a slowly moving copy of it, sees only the large
ones. For each pair of different crops, the student's distribution over K prototypes should match the teacher's (eqs. 1
to 3, Alg. 1). The teacher's is centred, so that no prototype wins everything, and sharpened, so that not all prototypes
are equal (eq. 4). It trains only the backbone's last feature map.

Student and teacher have the names of the other methods: `x` and `target_x`. Departures from the authors' code:

- The teacher's temperature rises with every step instead of every epoch.
- While the prototypes are frozen, their gradient is zero instead of absent. (Weight decay then shortens them, which has
  no effect: only their directions count.)
- The centre moves once per optimizer step, using all batches of that step.
- Crops are scaled bilinearly instead of by cubic splines; residual blocks start as the identity.
- There is no gradient clipping (theirs is at 3, per tensor) and no drop path, and weight decay is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import dino_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import Number, crop_maps, held, move_targets, target_copy
from boxless.training.distributed import gather
from boxless.training.optim import ema_momentum


@dataclass(frozen=True)
class DINOConfig(UnequalCrops):
    """DINO's hyper-parameters (paper, section 3.2 and appendix C; the code's README for ResNets)."""

    name: Literal["dino"] = "dino"
    local_size: int = 96
    """Size of the local crops, px."""
    local_crops: int = 8
    """Number of local crops per image."""
    scale: tuple[float, float] = (0.14, 1.0)
    """Range of the fraction of the image's area that a global crop shows: from 0.14 for ResNets, 0.4 for ViTs."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Range of the fraction of the image's area that a local crop shows; up to 0.4 for vision transformers."""
    local_look: Photometric = Photometric(blur=0.5)  # noqa: RUF009 (frozen)
    """Colours and blur of the local crops."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    output: int = 256
    """Width of the embeddings that are compared with the prototypes."""
    prototypes: int = 65536
    """Number K of prototypes."""
    held: float = 0.01
    """Fraction of the run in which the prototypes are frozen: the first epoch of 100."""
    temperature: float = 0.1
    """Temperature of the student."""
    first_target_temperature: float = 0.04
    """Temperature of the teacher at the start."""
    target_temperature: float = 0.07
    """Temperature of the teacher after its warm-up; use 0.04, the code's default, if training is unstable."""
    warmup: float = 0.3
    """Fraction of the run in which the teacher's temperature rises linearly: 30 epochs of 100."""
    center_momentum: float = 0.9
    """Momentum m of the centre (eq. 4)."""
    momentum: float = 0.996
    """Momentum of the teacher at the start; it rises to 1."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Two global crops, augmented differently, then the local ones."""
        local = ViewSpec(self.local_size, self.local_look, self.local_scale)
        return *super().views(), *[local] * self.local_crops

    def at_size(self, size: int) -> Self:
        """The same method on crops of another size, with blur and local crops scaled to match."""
        share = size / self.size
        local_size, local_look = round(self.local_size * share), self.local_look.at_scale(share)
        return replace(super().at_size(size), local_size=local_size, local_look=local_look)

    def build(self, trunk: Trunk) -> "DINO":
        """Build DINO around the trunk's backbone."""
        return DINO(trunk, self)


class DINO(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)
    center: Tensor

    def __init__(self, trunk: Trunk, config: DINOConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.projector = _projector(trunk.body_width, config.hidden, config.output)
        self.prototypes = nn.Linear(config.output, config.prototypes, bias=False)
        self.target_encoder = target_copy(self.encoder)
        self.target_projector = target_copy(self.projector)
        self.target_prototypes = target_copy(self.prototypes)
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.progress = Number()  # share of the run that is over
        self._means: list[Tensor] = []  # of the teacher's logits, since the last step

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two global crops and any number of local ones; boxes are not used."""
        h = [each.mean((2, 3)) for each in crop_maps(self.encoder, views)]  # (B, body width) each
        with torch.no_grad():
            h_target = [each.mean((2, 3)) for each in crop_maps(self.target_encoder, views[:2])]
        return self.compare(h, h_target)

    def compare(self, h: Sequence[Tensor], h_target: Sequence[Tensor]) -> MethodOutput:
        """Compute the loss from all crops' representations (B, body width) and the teacher's of global crops."""
        hold = self.progress.value < self.config.held
        z = [normalize(each, dim=1) for each in self.projector(torch.cat(list(h))).chunk(len(h))]  # (B, output)
        student = [_scores(each, self.prototypes, hold) for each in z]  # (B, K)
        with torch.no_grad():
            z_target = [normalize(self.target_projector(each), dim=1) for each in h_target]
            teacher = [_scores(each, self.target_prototypes) for each in z_target]
        loss = dino_loss(student, teacher, self.center, self.config.temperature, self.target_temperature())  # eq. 3
        if self.training:
            self._means.append(torch.cat(teacher).mean(0, dtype=self.center.dtype))
        return MethodOutput(loss, {}, z[0].detach(), z_target[1])

    def target_temperature(self) -> float:
        """Current temperature of the teacher."""
        share = min(self.progress.value / self.config.warmup, 1.0) if self.config.warmup else 1.0
        start, end = self.config.first_target_temperature, self.config.target_temperature
        return start + share * (end - start)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the teacher, which rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the teacher and the centre (eq. 4, over all processes)."""
        move_targets(self, self.momentum(step, total_steps))
        if self._means:
            mean = gather(torch.stack(self._means).mean(0, keepdim=True)).mean(0)  # (K,)
            self.center.lerp_(mean, 1 - self.config.center_momentum)
            self._means.clear()
        self.progress.value = (step + 1) / total_steps


def _projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with GELU, no norms."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])


def _scores(z: Tensor, prototypes: nn.Linear, hold: bool = False) -> Tensor:
    """Cosines (B, K) of unit vectors with the prototypes: weight norm whose length stays 1."""
    return linear(z, normalize(held(prototypes.weight, hold), dim=1))
