"""SoCo: Aligning Pretraining for Detection via Object-Level Contrastive Learning (Wei et al., 2021, arXiv:2106.02637).

Every box that selective search found is an instance. Its features in one view, pooled by RoIAlign from the pyramid
level that fits its size and passed through the detector's own box head, predict the target network's features of the
same box in another view. Trains backbone, FPN and RoI head.

Where paper and official code differ, this is the paper, and the code's way is an option:

- V3 is V2 made smaller (the code draws another crop: `third_view="independent_crop"`).
- A box is pooled at its own level only. (The code pools it at all four and masks three of the results away, so that its
  norms also see boxes at wrong levels.) All boxes of a view share one batch of norm statistics.
- The loss is the mean over an image's boxes (eq. 6). Where fewer than K boxes are visible, the empty places are masked;
  the code fills them with copies, which weighs boxes of one image unequally.
- No cut-out, which only the code has.
- Boxes are continuous; the code cuts them to the last pixel's index, one pixel short.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.boxes import assign_level, choose, jitter
from boxless.geometry.view import View
from boxless.losses import object_contrastive_loss
from boxless.methods.contract import MethodOutput
from boxless.methods.parts import mlp, target_copy
from boxless.training.optim import ema_momentum, ema_update

_DIRECTIONS = ((0, 1), (1, 0), (0, 2), (2, 0))
"""Which view predicts which (eq. 5 and its mirror image)."""


@dataclass(frozen=True)
class SoCoConfig:
    """SoCo's hyper-parameters (paper, sections 3.2, 3.3 and 4.1)."""

    name: Literal["soco"] = "soco"
    size: int = 224
    """Of V1 and V2, px."""
    small_size: int = 112
    """Of V3, px; the paper found 96 to 192 equally good."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the image's area that V2 shows."""
    third_view: Literal["resize_of_second", "independent_crop"] = "resize_of_second"
    """What V3 is: V2 made smaller (paper) or a crop of its own (official code)."""
    boxes: int = 4
    """K, boxes per image and step (paper, table 5c)."""
    jitter: float = 0.1
    """Largest shift and growth of a jittered box, as a share of its sides."""
    jitter_probability: float = 0.5
    """That a box of V1 is jittered."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """Of V1: BYOL's T."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """Of V2 and V3: BYOL's T'."""
    hidden: int = 4096
    """Width inside projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Of the target at the start, rising to 1."""

    needs_boxes: ClassVar[bool] = True

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it, V3 small."""
        if self.third_view == "resize_of_second":
            third = ViewSpec(self.small_size, self.second, resize_of=1)
        else:
            third = ViewSpec(self.small_size, self.second, self.scale, min_boxes=2)
        return ViewSpec(self.size, self.first), ViewSpec(self.size, self.second, self.scale, min_boxes=2), third

    def at_size(self, size: int) -> "SoCoConfig":
        """The same method on views of another size: blur and V3 keep their proportion to them."""
        first, second = (view.at_scale(size / self.size) for view in (self.first, self.second))
        return replace(self, size=size, small_size=size // 2, first=first, second=second)

    def build(self, trunk: Trunk) -> "SoCo":
        """SoCo around a trunk that has an FPN and a box head."""
        return SoCo(trunk, self)


class SoCo(nn.Module):
    """See the module's docstring."""

    trains = ("backbone", "FPN", "RoI head")

    def __init__(self, trunk: Trunk, config: SoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.projector = mlp(trunk.config.box_head_width, config.hidden, config.output)
        self.predictor = mlp(config.output, config.hidden, config.output)
        self.target_trunk = target_copy(trunk)
        self.target_projector = target_copy(self.projector)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """SoCo's loss of three views of each image (eqs. 1 to 6)."""
        places = [view.boxes(boxes) for view in views]  # (B, N, 4) in view px, (B, N) visible share
        seen = torch.stack([share > 0 for _, share in places]).all(0) & valid
        chosen, present = choose(seen, self.config.boxes, generator)  # (B, K)
        source = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))  # (B, K, 4)
        if present.sum() < 2:  # one vector has no batch statistics: nothing can be learned from this batch
            return self._nothing(present)
        jittered = jitter(source, self.config.jitter, self.config.jitter_probability, generator)
        rois = [view.boxes(jittered if number == 0 else source)[0] for number, view in enumerate(views)]

        h = [self._describe(self.trunk, view, at, present) for view, at in zip(views, rois, strict=True)]  # eq. 1
        with torch.no_grad():
            h_target = [
                self._describe(self.target_trunk, view, at, present) for view, at in zip(views, rois, strict=True)
            ]
            v_target = [self.target_projector(features) for features in h_target]  # eq. 4
        v = [self.predictor(self.projector(features)) for features in h]  # (R, output) each, R boxes in all

        match = torch.diag_embed(present.float())  # box k of one view is box k of the others
        loss = v[0].new_zeros(())
        terms = {}
        for a, b in _DIRECTIONS:
            online, target = self._placed(v[a], present), self._placed(v_target[b], present)
            term = object_contrastive_loss(online, target, match)  # eq. 6
            terms[f"v{a + 1}_to_v{b + 1}"] = term.detach()
            loss = loss + term
        terms["boxes_per_image"] = present.float().sum(1).mean()
        return MethodOutput(loss, terms, v[0].detach(), v_target[1])

    def momentum(self, step: int, total_steps: int) -> float:
        """Of the target: rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target."""
        momentum = self.momentum(step, total_steps)
        ema_update(self.target_trunk.parameters(), self.trunk.parameters(), momentum)
        ema_update(self.target_projector.parameters(), self.projector.parameters(), momentum)

    def _nothing(self, present: Tensor) -> MethodOutput:
        """A loss of 0 that every parameter takes part in, as distributed training wants it."""
        loss = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0
        terms = {f"v{a + 1}_to_v{b + 1}": loss.detach() for a, b in _DIRECTIONS}
        return MethodOutput(loss, {**terms, "boxes_per_image": present.float().sum(1).mean()})

    @staticmethod
    def _describe(trunk: Trunk, view: View, rois: Tensor, present: Tensor) -> Tensor:
        """h = f_H(RoIAlign(f_I(V), b)) of the boxes that are present, (R, box_head_width)."""
        image_of = torch.arange(len(rois), device=rois.device)[:, None].expand(present.shape)
        flat = torch.cat([image_of[present][:, None].to(rois.dtype), rois[present]], 1)
        pooled = trunk.roi_pool.pool(trunk.pyramid(view.image), flat, assign_level(flat[:, 1:]), view.size)
        described: Tensor = trunk.box_head(pooled)
        return described

    @staticmethod
    def _placed(vectors: Tensor, present: Tensor) -> Tensor:
        """Vectors (R, D) of the present boxes back in their places (B, K, D); zeros elsewhere."""
        placed = vectors.new_zeros(*present.shape, vectors.shape[1])
        return placed.masked_scatter(present[..., None], vectors)
