"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen et al., 2020, arXiv:2003.04297; v1: 1911.05722).

A query must find the key of its own image among a queue of past keys:
L = -log(e^{q.k+ / t} / (e^{q.k+ / t} + sum_j e^{q.k_j / t})) (v1, eq. 1). The keys come from a slowly moving copy of
the encoder (eq. 2), in shuffled order (section 3.3). It trains only the backbone's last feature map.

Batch norms use parts of a batch, as on the authors' 8 GPUs, so that shuffling also works on a single one: with
`norm_groups=1` on one process, the keys' statistics are those of the queries' own images and give the pairs away. Do
not synchronise such norms between processes.

Departures from the authors' code: the key encoder moves after the step instead of before the next (the same sequence),
and residual blocks start as the identity, as in all methods here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.data.transforms.color import Photometric
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import info_nce_loss
from boxless.methods.crops import EqualCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import Queue, Shuffle, in_groups, move_targets, plain_mlp, pooled, target_copy
from boxless.training.distributed import own


@dataclass(frozen=True)
class MomentumContrast(EqualCrops):
    """Hyper-parameters of MoCo v2 that DenseCL and DetCo share (v2, section 3; v1, section 3.3; code)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the fraction of the image's area that a crop shows."""
    photometric: Photometric = Photometric(saturation=0.4, blur=0.5)  # noqa: RUF009 (frozen)
    """Colours and blur of all views (v2: those of v1, with blur)."""
    output: int = 128
    """Width of queries and keys."""
    temperature: float = 0.2
    """Temperature t of all losses (v2, table 2); 0.07 in v1."""
    queue_length: int = 65536
    """Length of each queue: past keys that a query must tell from its own."""
    momentum: float = 0.999
    """Momentum of the key encoder, constant."""
    norm_groups: int = 8
    """Number of parts of the batch, over all processes, with their own batch statistics: the authors' 8 GPUs."""

    needs_boxes: ClassVar[bool] = False


@dataclass(frozen=True)
class MoCoConfig(MomentumContrast):
    """MoCo v2's hyper-parameters."""

    name: Literal["moco"] = "moco"
    hidden: int = 2048
    """Width of the head's hidden layer."""

    def build(self, trunk: Trunk) -> "MoCo":
        """Build MoCo around the trunk's backbone."""
        return MoCo(trunk, self)


class MoCo(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.head = plain_mlp(trunk.body_width, config.hidden, config.output)
        self.target_encoder = target_copy(self.encoder)
        self.target_head = target_copy(self.head)
        self.queue = Queue(config.queue_length, config.output)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of a query's and a key's view; boxes are not used."""
        x_q, x_k = (view.image for view in views)
        q = in_groups(lambda x: self.head(pooled(self.encoder, x)), x_q, self.config.norm_groups)  # (B, output)
        with torch.no_grad():
            shuffle = Shuffle(len(x_k), generator, x_k.device)
            k = in_groups(
                lambda x: self.target_head(pooled(self.target_encoder, x)), shuffle(x_k), self.config.norm_groups
            )
            keys = shuffle.undo(normalize(k, dim=1))  # (W * B, output)
            k = own(keys)  # (B, output)
        self.queue.hold(keys)
        loss = info_nce_loss(q, k, self.queue.vectors, self.config.temperature)  # eq. 1
        return MethodOutput(loss, {}, q.detach(), k)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the key encoder, which is constant."""
        return self.config.momentum

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder (eq. 2), and push the step's keys to the queue."""
        move_targets(self, self.momentum(step, total_steps))
        self.queue.push_held()
