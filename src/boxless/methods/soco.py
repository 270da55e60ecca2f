"""SoCo: Aligning Pretraining for Detection via Object-Level Contrastive Learning (Wei et al., 2021, arXiv:2106.02637).

Every box from selective search is an instance. Its features in one view, pooled by RoIAlign from the pyramid level that
fits its size and passed through the detector's own box head, predict the target network's features of the same box in
another view. It trains backbone, FPN and RoI head. SoCo* uses other views and SoCo-C4 no pyramid: see soco_star.py and
soco_c4.py.

If paper and official code differ, this module follows the paper, and the code's way is an option:

- V3 is V2 made smaller (`third_view="independent_crop"`: another crop, as in the code).
- A box is pooled at its own level only, and all boxes of a view share one batch of norm statistics
  (`pooling="all_levels"`: at all four in turn, so that norms also see boxes at wrong levels).
- The loss is the mean over an image's boxes (eq. 6); if fewer than K are visible, the empty places are masked
  (`empty_places="copies"`: filled with copies, drawn again in each view, which all match and weight boxes unequally).
- Nothing is cut out (`cut_out=0.5`: a square of every second box of V2 and V3).
- All views show the same K boxes; the code draws them for each pair of views that do not show the same crop.
- A jittered box grows about its centre; the code keeps its upper left corner.
- Boxes are continuous; the code cuts them to the last pixel's index, one pixel short.

The rungs of table 4 are options too (`align`, `pooling="coarsest_level"`, `jitter_probability=0`, `third_view="none"`).
The paper does not say at which level a box is pooled without size assignment, nor what describes it without a head:
here it is the coarsest level, at C5's resolution, and the average of the pooled features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import RoIPool, Trunk
from boxless.errors import UserError
from boxless.geometry.boxes import area, assign_level, choose, jitter, own_rows
from boxless.geometry.view import View
from boxless.losses import object_contrastive_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.method import MethodOutput
from boxless.methods.modules import mlp, move_targets, nothing, target_copy, with_all
from boxless.training.distributed import total
from boxless.training.optim import ema_momentum


@dataclass(frozen=True)
class SoCoFamily(UnequalCrops):
    """The hyper-parameters that SoCo, SoCo* and SoCo-C4 share (paper, sections 3.2, 3.3 and 4.1)."""

    scale: tuple[float, float] = (0.5, 1.0)
    """Range of the fraction of the image's area that a crop shows; V1 shows all of it."""
    empty_places: Literal["masked", "copies"] = "masked"
    """Replacement for boxes that an image lacks: none, or copies of the boxes that it has (official code)."""
    cut_out: float = 0.0
    """Probability of erasing a square inside a box in views other than V1 (official code of SoCo for 100 epochs and of
    SoCo-C4: 0.5)."""
    boxes: int = 4
    """Number K of boxes per image and step (paper, table 5c)."""
    jitter: float = 0.1
    """Largest shift and growth of a jittered box, as a fraction of its sides."""
    jitter_probability: float = 0.5
    """Probability of jittering a box of V1 (official code of SoCo-C4: 0)."""
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Momentum of the target at the start; it rises to 1."""

    needs_boxes: ClassVar[bool] = True
    necks: ClassVar[tuple[str, ...]] = ("fpn", "hybrid")

    @property
    def pooling(self) -> Literal["own_level", "all_levels", "coarsest_level"]:
        """The level at which a box is pooled; an option if there are several levels."""
        return "own_level"

    @property
    def align(self) -> Literal["head", "pyramid", "body"]:
        """The parts that describe a box; an option in methods of table 4."""
        return "head"

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it."""
        return ViewSpec(self.size, self.first), ViewSpec(self.size, self.second, self.scale, min_boxes=2)

    def build(self, trunk: Trunk) -> "SoCo":
        """Build SoCo around a trunk with a box head, with a pyramid or, for SoCo-C4, without."""
        return SoCo(trunk, self)


@dataclass(frozen=True)
class SoCoConfig(SoCoFamily):
    """SoCo's hyper-parameters."""

    name: Literal["soco"] = "soco"
    small_size: int = 112
    """Size of V3, px; the paper found 96 to 192 equally good."""
    third_view: Literal["resize_of_second", "independent_crop", "none"] = "resize_of_second"
    """Third view: V2 made smaller (paper), a crop of its own (official code), or none (table 4)."""
    pooling: Literal["own_level", "all_levels", "coarsest_level"] = "own_level"
    """Levels that a box is pooled from: the level of its size; all, of which one counts (official code); or the
    coarsest for every size (table 4)."""
    align: Literal["head", "pyramid", "body"] = "head"
    """Last part that is pretrained, whose output describes a box: the box head or, in table 4, the pyramid or the body,
    averaged over the box."""

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it, V3 small."""
        first, second = super().views()
        if self.third_view == "none":
            return first, second
        if self.third_view == "resize_of_second":
            return first, second, ViewSpec(self.small_size, self.second, resize_of=1)
        return first, second, replace(second, size=self.small_size)

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with blur and V3 scaled to match."""
        return replace(super().at_size(size), small_size=size // 2)


class SoCo(nn.Module):
    """See the module's docstring.

    Raises:
        UserError: if the trunk's neck is not the method's.
    """

    def __init__(self, trunk: Trunk, config: SoCoFamily) -> None:
        super().__init__()
        if trunk.config.neck not in config.necks:
            raise UserError(
                f"trunk.neck: {trunk.config.neck}; method {config.name} needs trunk.neck={config.necks[0]} "
                "(soco and soco-star need fpn or hybrid, soco-c4 needs c4)"
            )
        self.config = config
        # V1 and every other view predict each other (eq. 5 and its mirror image).
        self.directions = [pair for other in range(1, len(config.views())) for pair in ((0, other), (other, 0))]
        self.trunk = trunk
        self.trains = tuple(trunk.parts)[: {"body": 1, "pyramid": 2, "head": 3}[config.align]]
        for name in set(trunk.parts) - set(self.trains):
            trunk.parts[name].requires_grad_(False)
        width = {"body": trunk.backbone.body.widths[-1], "pyramid": trunk.backbone.out_channels}
        self.projector = mlp(width.get(config.align, trunk.head_width), config.hidden, config.output)
        self.predictor = mlp(config.output, config.hidden, config.output)
        self.target_trunk = target_copy(trunk)
        self.target_projector = target_copy(self.projector)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of the views of each image (eqs. 1 to 6)."""
        source, present = shared_boxes(views, boxes, valid, self.config.boxes, generator)  # (B, K, 4), (B, K)
        if total(int(present.sum())) < 2:  # one vector has no batch statistics: nothing can be learned from this batch
            return self._nothing(present)
        jittered = jitter(source, self.config.jitter, self.config.jitter_probability, generator)
        rois = [view.boxes(jittered if number == 0 else source)[0] for number, view in enumerate(views)]
        ids, there = self._filled(present, len(views), generator)  # (B, K) per view, (B, K)
        rois = [at.gather(1, own[..., None].expand(-1, -1, 4)) for at, own in zip(rois, ids, strict=True)]
        if self.config.cut_out:
            others = zip(views[1:], rois[1:], strict=True)
            views = (views[0], *(cut_out(view, at, there, self.config.cut_out, generator) for view, at in others))

        def embed(trunk: Trunk, *heads: nn.Module) -> list[Tensor]:
            head = nn.Sequential(*heads)
            return [self._embed(trunk, head, view, at, there) for view, at in zip(views, rois, strict=True)]

        v = embed(self.trunk, self.projector, self.predictor)  # eqs. 1 to 3: (R, output) each, R boxes in all
        with torch.no_grad():
            v_target = embed(self.target_trunk, self.target_projector)  # eq. 4

        loss = v[0].new_zeros(())
        terms = {}
        for a, b in self.directions:
            same = (ids[a][:, :, None] == ids[b][:, None]) & there[:, :, None] & there[:, None]  # (B, K, K)
            pair = placed(v[a], there), placed(v_target[b], there)
            term = object_contrastive_loss(*pair, same.to(loss.device, non_blocking=True))  # eq. 6
            terms[f"v{a + 1}_to_v{b + 1}"] = term.detach()
            loss = loss + term
        terms["boxes_per_image"] = present.float().sum(1).mean()
        return MethodOutput(loss, terms, v[0].detach(), v_target[1])

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the target, which rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target."""
        move_targets(self, self.momentum(step, total_steps))

    def _nothing(self, present: Tensor) -> MethodOutput:
        """The output for a batch without boxes."""
        loss = nothing(self)
        terms = {f"v{a + 1}_to_v{b + 1}": loss.detach() for a, b in self.directions}
        return MethodOutput(loss, {**terms, "boxes_per_image": present.float().sum(1).mean()})

    def _filled(self, present: Tensor, views: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Return the box index in each place of each view, (B, K) each, and the mask (B, K) of filled places."""
        own = torch.arange(present.shape[1], device=present.device).expand_as(present)
        if self.config.empty_places == "masked":
            return [own] * views, present
        count = present.sum(1, keepdim=True)  # the boxes come first
        shares = [
            own_rows(len(present), lambda rows: torch.rand(rows, present.shape[1], generator=generator))
            for _ in range(views)
        ]
        drawn = [(share * count).long() for share in shares]
        return [torch.where(present, own, other) for other in drawn], (count > 0).expand_as(present)

    def _embed(self, trunk: Trunk, head: nn.Module, view: View, rois: Tensor, there: Tensor) -> Tensor:
        """Embed the present boxes (B, K, 4): h = f_H(RoIAlign(f_I(V), b)) and the heads behind it, (R, D)."""
        flat = listed(rois, there)  # (R, 5)
        levels = assign_level(flat[:, 1:])
        align = self.config.align
        maps = {"0": trunk.backbone.body(view.image)["3"]} if align == "body" else trunk.pyramid(view.image)
        roi_pool = RoIPool(first=5) if align == "body" else trunk.roi_pool  # C5 or what the pyramid has
        first, last = roi_pool.first, roi_pool.last

        def at(levels: Tensor) -> Tensor:
            pooled = roi_pool.pool(maps, flat, levels, view.size)  # (R, C, S, S)
            vectors: Tensor = head(trunk.box_head(pooled) if align == "head" else pooled.mean((2, 3)))
            return with_all(vectors, maps)

        if self.config.pooling == "own_level":
            return at(levels)
        if self.config.pooling == "coarsest_level":
            return at(torch.full_like(levels, last))
        everywhere = torch.stack(
            [at(torch.full_like(levels, level)) for level in range(first, last + 1)]
        )  # (levels, R, D)
        own = levels.clamp(first, last) - first
        place = own, torch.arange(len(levels))
        return everywhere[tuple(at.to(everywhere.device, non_blocking=True) for at in place)]


def shared_boxes(
    views: Sequence[View], boxes: Tensor, valid: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose up to K boxes of each image at random from those that all its views show.

    Args:
        views: views of the same images.
        boxes: (B, N, 4), source px.
        valid: (B, N), false for padding.
        count: K.
        generator: on the CPU.

    Returns:
        (B, K, 4), source px, and (B, K), true for places that hold a box.
    """
    seen = torch.stack([view.boxes(boxes)[1] > 0 for view in views]).all(0) & valid
    chosen, present = choose(seen, count, generator)  # (B, K)
    return boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), present


def listed(boxes: Tensor, there: Tensor) -> Tensor:
    """Select the R boxes of (B, K, 4) that are present (B, K), each preceded by its image's number: (R, 5)."""
    image_of = torch.arange(len(boxes), device=boxes.device)[:, None].expand(there.shape)
    return torch.cat([image_of[there][:, None].to(boxes.dtype), boxes[there]], 1)


def placed(vectors: Tensor, there: Tensor) -> Tensor:
    """Put vectors (R, D) of the boxes from `listed` back into their places (B, K, D), with zeros elsewhere."""
    rows = there.flatten().nonzero().squeeze(1).to(vectors.device, non_blocking=True)
    places = vectors.new_zeros(there.numel(), vectors.shape[1]).index_copy(0, rows, vectors)
    return places.view(*there.shape, -1)


def cut_out(view: View, boxes: Tensor, there: Tensor, probability: float, generator: torch.Generator) -> View:
    """Cover a square in some boxes with grey, a tenth to three tenths of the box's area, as in the official code.

    Args:
        view: images normalised, so that 0 is the mean colour.
        boxes: (B, K, 4), view px; the square's centre is anywhere in its box.
        there: (B, K), true for boxes that count.
        probability: probability that a box loses a square.
        generator: on the CPU.
    """
    draws = own_rows(len(there), lambda rows: torch.rand(rows, there.shape[1], 4, generator=generator))
    side = (area(boxes) * (0.1 + 0.2 * draws[..., 0])).sqrt()[..., None]  # (B, K, 1)
    centre = boxes[..., :2] + draws[..., 1:3] * (boxes[..., 2:] - boxes[..., :2])
    x, y = centre[..., :1], centre[..., 1:]
    height, width = view.size
    columns = (torch.arange(width) + 0.5 - x).abs() < side / 2  # (B, K, W)
    rows = (torch.arange(height) + 0.5 - y).abs() < side / 2
    rows &= (there & (draws[..., 3] < probability))[..., None]
    rows, columns = (each.to(view.image.device, non_blocking=True) for each in (rows, columns))
    holes = (rows[..., None] & columns[..., None, :]).any(1, keepdim=True)  # (B, 1, H, W)
    return view.with_image(view.image.masked_fill(holes, 0.0))
