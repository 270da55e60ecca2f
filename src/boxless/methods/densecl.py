"""DenseCL: Dense Contrastive Learning for Self-Supervised Visual Pre-Training (Wang et al., 2021, arXiv:2011.09157).

MoCo v2 with a second, dense loss: every cell of the query's map must tell its partner, the key cell whose backbone
features are most alike (eq. 4), from pooled dense keys of other images (eq. 3). L = (1 - lambda) L_q + lambda L_r
(eq. 5). Each loss has its own head and its own queue. Trains the backbone's last feature map alone.

As in our MoCo, batch norms keep to parts of a batch, as on the authors' 8 GPUs, and keys are encoded in shuffled order;
such norms must not be synchronised between processes.

Departures from the authors' code: the key encoder moves after the step and not before the next (the same sequence),
residual blocks start as the identity, as for all methods here, and heads start as PyTorch's layers do.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import dense_info_nce, info_nce_loss
from boxless.methods.contract import MethodOutput
from boxless.methods.parts import Queue, Shuffle, in_groups, target_copy
from boxless.training.distributed import gather, own
from boxless.training.optim import ema_update


@dataclass(frozen=True)
class DenseCLConfig:
    """DenseCL's hyper-parameters (paper, sections 3 and 4.1)."""

    name: Literal["densecl"] = "densecl"
    size: int = 224
    """Of both views, px."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop shows (MoCo v2)."""
    photometric: Photometric = Photometric(saturation=0.4, blur=0.5)  # noqa: RUF009 (frozen)
    """Of both views (MoCo v2)."""
    hidden: int = 2048
    """Width inside both heads."""
    output: int = 128
    """Width of queries and keys."""
    queue_length: int = 65536
    """Of both queues, keys."""
    temperature: float = 0.2
    """Of both losses."""
    dense_weight: float = 0.5
    """lambda: share of the dense loss (paper, table 4)."""
    momentum: float = 0.999
    """Of the key encoder, constant (MoCo)."""
    norm_groups: int = 8
    """Parts of each process's batch with batch statistics of their own; 1 where 8 or more processes train."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Query and key: two random crops, augmented alike."""
        view = ViewSpec(self.size, self.photometric, self.scale)
        return view, view

    def at_size(self, size: int) -> "DenseCLConfig":
        """The same method on views of another size: blur keeps its proportion to them."""
        return replace(self, size=size, photometric=self.photometric.at_scale(size / self.size))

    def build(self, trunk: Trunk) -> "DenseCL":
        """DenseCL around the trunk's backbone."""
        return DenseCL(trunk, self)


class DenseCL(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: DenseCLConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, output = trunk.body_width, config.hidden, config.output
        self.encoder = trunk.backbone.body
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, output))
        self.dense_projector = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, output, 1)
        )
        self.target_encoder = target_copy(self.encoder)
        self.target_projector = target_copy(self.projector)
        self.target_dense_projector = target_copy(self.dense_projector)
        self.queue = Queue(config.queue_length, output)
        self.dense_queue = Queue(config.queue_length, output)
        self._keys: list[tuple[Tensor, Tensor]] = []  # of all processes, of the batches since the last step

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """DenseCL's loss of a query and a key view; boxes are not used."""
        x_q, x_k = (view.image for view in views)
        groups, temperature, weight = self.config.norm_groups, self.config.temperature, self.config.dense_weight
        f_q = in_groups(lambda x: _c5(self.encoder, x), x_q, groups)  # (B, C, h, w)
        q = self.projector(f_q.mean((2, 3)))  # (B, output)
        r = self.dense_projector(f_q).flatten(2)  # (B, output, h w)
        with torch.no_grad():
            shuffle = Shuffle(len(x_k), generator, x_k.device)
            f_k = own(shuffle.undo(in_groups(lambda x: _c5(self.target_encoder, x), shuffle(x_k), groups)))
            k = self.target_projector(f_k.mean((2, 3)))
            t = self.target_dense_projector(f_k).flatten(2)
            if self.training:  # the dense queue holds one key per image, the mean of its cells
                self._keys.append((gather(normalize(k, dim=1)), gather(normalize(t.mean(2), dim=1))))
        whole = info_nce_loss(q, k, self.queue.vectors, temperature)  # eq. 1
        dense = dense_info_nce(r, t, f_q.flatten(2), f_k.flatten(2), self.dense_queue.vectors, temperature)  # eqs. 3, 4
        loss = (1 - weight) * whole + weight * dense  # eq. 5
        return MethodOutput(loss, {"global": whole.detach(), "dense": dense.detach()}, q.detach(), k)

    def momentum(self, step: int, total_steps: int) -> float:
        """Of the key encoder: constant."""
        return self.config.momentum

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder and its heads; put the step's keys in their queues."""
        momentum = self.momentum(step, total_steps)
        ema_update(self.target_encoder.parameters(), self.encoder.parameters(), momentum)
        ema_update(self.target_projector.parameters(), self.projector.parameters(), momentum)
        ema_update(self.target_dense_projector.parameters(), self.dense_projector.parameters(), momentum)
        for keys, dense_keys in self._keys:
            self.queue.push(keys)
            self.dense_queue.push(dense_keys)
        self._keys.clear()


def _c5(encoder: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = encoder(images)["3"]
    return features
