"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., 2020, 2006.09882).

Each image of a batch is assigned to K prototypes, by codes Q that spread the batch evenly over them (eqs. 3 to 5, three
Sinkhorn iterations). Each crop predicts the codes of the image's other global crops (eqs. 1, 2 and 6). It trains only
the backbone's last feature map.

The batch is that of all processes together. A queue of past embeddings is added to small batches; its codes only affect
the even spread. Departures from the authors' code:

- While the prototypes are frozen, their gradient is zero instead of absent; they are normalised after each step instead
  of before it.
- One queue serves all processes and need not be a multiple of the batch.
- Residual blocks start as the identity, as in all methods here.
- ImageNet's standard deviations are used without the code's typing error (0.228 for red).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.view import View
from boxless.losses import even_codes, swapped_prediction_loss
from boxless.methods.method import MethodOutput
from boxless.methods.modules import Number, Queue, crop_maps, held, mlp
from boxless.training.distributed import gather, own


@dataclass(frozen=True)
class SwAVConfig:
    """SwAV's hyper-parameters (paper, sections 3 and 4, appendix A; queue as in the code's script for batch 256)."""

    name: Literal["swav"] = "swav"
    size: int = 224
    """Size of the two global crops, px."""
    local_size: int = 96
    """Size of the local crops, px."""
    local_crops: int = 6
    """Number of local crops per image."""
    scale: tuple[float, float] = (0.14, 1.0)
    """Range of the fraction of the image's area that a global crop shows."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Range of the fraction of the image's area that a local crop shows."""
    look: Photometric = Photometric(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)  # noqa: RUF009
    """Colours and blur of all crops: SimCLR's."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    output: int = 128
    """Width of the embeddings that are compared with the prototypes."""
    prototypes: int = 3000
    """Number K of prototypes."""
    held: float = 0.005
    """Fraction of the run in which the prototypes are frozen: the first epoch of 200."""
    temperature: float = 0.1
    """Temperature tau of eq. 2."""
    epsilon: float = 0.05
    """Entropy weight in the codes (eq. 3); lower it to 0.03 if the loss stays at ln K."""
    iterations: int = 3
    """Iterations of Sinkhorn."""
    queue_length: int = 0
    """Number of past embeddings that take part in the codes; 3840 for a batch of 256, none for thousands."""
    queue_start: float = 0.075
    """Fraction of the run after which the queue is filled, and used once full: 15 epochs of 200."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """Two global crops, then the local ones, all with the same augmentation."""
        local = ViewSpec(self.local_size, self.look, self.local_scale)
        return *[ViewSpec(self.size, self.look, self.scale)] * 2, *[local] * self.local_crops

    def at_size(self, size: int) -> "SwAVConfig":
        """The same method on crops of another size, with blur and local crops scaled to match."""
        share = size / self.size
        return replace(self, size=size, local_size=round(self.local_size * share), look=self.look.at_scale(share))

    def build(self, trunk: Trunk) -> "SwAV":
        """Build SwAV around the trunk's backbone."""
        return SwAV(trunk, self)


class SwAV(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: SwAVConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = trunk.backbone.body
        self.projector = mlp(trunk.body_width, config.hidden, config.output)
        self.prototypes = nn.Linear(config.output, config.prototypes, bias=False)
        self._normalize_prototypes()
        queues = 2 if config.queue_length else 0  # one for each global crop
        self.queues = nn.ModuleList([Queue(config.queue_length, config.output) for _ in range(queues)])
        self.queued = Number()  # embeddings that each queue has taken
        self.progress = Number()  # share of the run that is over
        self._embeddings: list[list[Tensor]] = []  # of the global crops, since the last step

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two global crops and any number of local ones; boxes are not used."""
        h = torch.cat([each.mean((2, 3)) for each in crop_maps(self.encoder, views)])  # (crops * B, body width)
        z = normalize(self.projector(h), dim=1).chunk(len(views))  # (B, output) each
        prototypes = held(self.prototypes.weight, self.progress.value < self.config.held)  # (K, output)
        scores = [linear(each, prototypes) for each in z]  # (B, K)
        codes = [self._codes(each, number) for number, each in enumerate(scores[:2])]
        loss = swapped_prediction_loss(scores, codes, self.config.temperature)  # eqs. 2 and 6
        if self.training and self.queues and self.progress.value >= self.config.queue_start:
            self._embeddings.append([each.detach() for each in z[:2]])
        return MethodOutput(loss, {}, z[0].detach(), z[1].detach())

    def after_step(self, step: int, total_steps: int) -> None:
        """Normalise the prototypes and push the batch's embeddings to the queues."""
        self._normalize_prototypes()
        for batch in self._embeddings:
            gathered = [gather(each) for each in batch]
            for queue, embeddings in zip(self.queues, gathered, strict=True):
                assert isinstance(queue, Queue)
                queue.push(embeddings)
            self.queued.value += len(gathered[0])
        self._embeddings.clear()
        self.progress.value = (step + 1) / total_steps

    @torch.no_grad()
    def _codes(self, scores: Tensor, crop: int) -> Tensor:
        """Compute the codes Q (B, K) of a global crop of this process's images, even over all images and the queue."""
        batch = gather(scores)  # (W * B, K)
        together = batch
        if self.queues and self.queued.value >= self.config.queue_length:
            past = self.queues[crop].vectors
            assert isinstance(past, Tensor)
            together = torch.cat([batch, linear(past, self.prototypes.weight).to(batch.dtype)])
        codes = even_codes(together, self.config.epsilon, self.config.iterations)  # eqs. 3 to 5
        return own(codes[: len(batch)])

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
