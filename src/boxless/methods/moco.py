"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen et al., 2020, arXiv:2003.04297; v1: 1911.05722).

A query must find the key of its own image among a queue of past keys:
L = -log(e^{q.k+ / t} / (e^{q.k+ / t} + sum_j e^{q.k_j / t})) (v1, eq. 1). The keys come from a slowly moving copy of
the encoder (eq. 2), in shuffled order (section 3.3). Trains the backbone's last feature map alone.

Batch norms keep to parts of a batch, as on the authors' 8 GPUs, so that shuffling works on a single one as well: with
`norm_groups=1` on one process, the keys' statistics are those of the queries' own images and give the pairs away. Such
norms must not be synchronised between processes.

Departures from the authors' code: the key encoder moves after the step and not before the next (the same sequence), and
residual blocks start as the identity, as for all methods here.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import info_nce_loss
from boxless.methods.contract import MethodOutput
from boxless.methods.parts import Queue, Shuffle, in_groups, pooled, target_copy
from boxless.training.distributed import own
from boxless.training.optim import ema_update


@dataclass(frozen=True)
class MoCoConfig:
    """MoCo v2's hyper-parameters (v2, section 3; v1, section 3.3; code)."""

    name: Literal["moco"] = "moco"
    size: int = 224
    """Of both views, px."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop shows."""
    photometric: Photometric = Photometric(saturation=0.4, blur=0.5)  # noqa: RUF009 (frozen)
    """Of both views (v2: v1's with blur)."""
    hidden: int = 2048
    """Width inside the head."""
    output: int = 128
    """Width of queries and keys."""
    temperature: float = 0.2
    """t (v2, table 2); 0.07 in v1."""
    queue_length: int = 65536
    """Past keys that a query must tell from its own."""
    momentum: float = 0.999
    """Of the key encoder, constant."""
    norm_groups: int = 8
    """Parts of each process's batch with batch statistics of their own; 1 where 8 or more processes train."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """The query's crop and the key's, augmented alike."""
        view = ViewSpec(self.size, self.photometric, self.scale)
        return view, view

    def at_size(self, size: int) -> "MoCoConfig":
        """The same method on views of another size: blur keeps its proportion to them."""
        return replace(self, size=size, photometric=self.photometric.at_scale(size / self.size))

    def build(self, trunk: Trunk) -> "MoCo":
        """MoCo around the trunk's backbone."""
        return MoCo(trunk, self)


class MoCo(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.head = nn.Sequential(
            nn.Linear(trunk.body_width, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, config.output)
        )
        self.target_encoder = target_copy(self.encoder)
        self.target_head = target_copy(self.head)
        self.queue = Queue(config.queue_length, config.output)
        self._keys: list[Tensor] = []  # of all processes, of the batches since the last step

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """MoCo's loss of a query's and a key's view; boxes are not used."""
        x_q, x_k = (view.image for view in views)
        q = in_groups(lambda x: self.head(pooled(self.encoder, x)), x_q, self.config.norm_groups)  # (B, output)
        with torch.no_grad():
            shuffle = Shuffle(len(x_k), generator, x_k.device)
            k = in_groups(
                lambda x: self.target_head(pooled(self.target_encoder, x)), shuffle(x_k), self.config.norm_groups
            )
            keys = shuffle.undo(normalize(k, dim=1))  # (W * B, output)
            k = own(keys)  # (B, output)
            if self.training:
                self._keys.append(keys)
        loss = info_nce_loss(q, k, self.queue.vectors, self.config.temperature)  # eq. 1
        return MethodOutput(loss, {}, q.detach(), k)

    def momentum(self, step: int, total_steps: int) -> float:
        """Of the key encoder: constant."""
        return self.config.momentum

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder (eq. 2); put the step's keys in the queue."""
        momentum = self.momentum(step, total_steps)
        ema_update(self.target_encoder.parameters(), self.encoder.parameters(), momentum)
        ema_update(self.target_head.parameters(), self.head.parameters(), momentum)
        for keys in self._keys:
            self.queue.push(keys)
        self._keys.clear()
