"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (Wang et al., 2021, arXiv:2011.09157).

MoCo v2 with a second, dense loss: every cell of the query's map must distinguish its partner, the key cell with the
most similar backbone features (eq. 4), from pooled dense keys of other images (eq. 3). L = (1 - lambda) L_q + lambda
L_r (eq. 5). Each loss has its own head and its own queue. It trains only the backbone's last feature map.

As in our MoCo, batch norms use parts of a batch, as on the authors' 8 GPUs, and keys are encoded in shuffled order.
Do not synchronise such norms between processes.

Departures from the authors' code: the key encoder moves after the step instead of before the next (the same sequence),
residual blocks start as the identity, as in all methods here, and heads use PyTorch's default initialisation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import dense_info_nce, info_nce_loss
from boxless.methods.method import MethodOutput
from boxless.methods.moco import MomentumContrast
from boxless.methods.modules import Queue, Shuffle, in_groups, move_targets, plain_mlp, target_copy
from boxless.training.distributed import gather, own


@dataclass(frozen=True)
class DenseCLConfig(MomentumContrast):
    """DenseCL's hyper-parameters (paper, sections 3 and 4.1): MoCo v2's, and these."""

    name: Literal["densecl"] = "densecl"
    hidden: int = 2048
    """Width of the hidden layers of both heads."""
    dense_weight: float = 0.5
    """Weight lambda of the dense loss; 1 - lambda is the other's (paper, table 4)."""

    def build(self, trunk: Trunk) -> "DenseCL":
        """Build DenseCL around the trunk's backbone."""
        return DenseCL(trunk, self)


class DenseCL(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: DenseCLConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, output = trunk.body_width, config.hidden, config.output
        self.encoder = trunk.backbone.body
        self.projector = plain_mlp(width, hidden, output)
        self.dense_projector = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, output, 1)
        )
        self.target_encoder = target_copy(self.encoder)
        self.target_projector = target_copy(self.projector)
        self.target_dense_projector = target_copy(self.dense_projector)
        self.queue = Queue(config.queue_length, output)
        self.dense_queue = Queue(config.queue_length, output)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of a query and a key view; boxes are not used."""
        x_q, x_k = (view.image for view in views)
        groups, temperature, weight = self.config.norm_groups, self.config.temperature, self.config.dense_weight
        f_q = in_groups(lambda x: self.encoder(x)["3"], x_q, groups)  # (B, C, h, w)
        q = self.projector(f_q.mean((2, 3)))  # (B, output)
        r = self.dense_projector(f_q).flatten(2)  # (B, output, h w)
        with torch.no_grad():
            shuffle = Shuffle(len(x_k), generator, x_k.device)
            f_k = own(shuffle.undo(in_groups(lambda x: self.target_encoder(x)["3"], shuffle(x_k), groups)))
            k = self.target_projector(f_k.mean((2, 3)))
            t = self.target_dense_projector(f_k).flatten(2)
            self.queue.hold(gather(normalize(k, dim=1)))
            self.dense_queue.hold(gather(normalize(t.mean(2), dim=1)))  # one key per image, the mean of its cells
        whole = info_nce_loss(q, k, self.queue.vectors, temperature)  # eq. 1
        dense = dense_info_nce(r, t, f_q.flatten(2), f_k.flatten(2), self.dense_queue.vectors, temperature)  # eqs. 3, 4
        loss = (1 - weight) * whole + weight * dense  # eq. 5
        return MethodOutput(loss, {"global": whole.detach(), "dense": dense.detach()}, q.detach(), k)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the key encoder, which is constant."""
        return self.config.momentum

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder and its heads, and push the step's keys to their queues."""
        move_targets(self, self.momentum(step, total_steps))
        self.queue.push_held()
        self.dense_queue.push_held()
