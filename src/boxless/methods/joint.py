"""Whole images, cells and boxes together: the terms of three papers over one pass of backbone and FPN per view.

L = w_global L_BYOL + w_pixel L_LC + w_object L_SoCo, of two views: V1 is the whole image (SoCo's V1 and LC-loss's
uncropped view), V2 a crop of it.

- global: BYOL (arXiv:2006.07733), eq. 2 in both directions, on the average of C5;
- pixel: LC-loss (Islam et al.), eqs. 2 to 4, in both directions; the paper only uses V1 to V2. The paper's map is C5.
  A level of the pyramid trains the FPN too, and its finer cells must be distinguished from more neighbours: an image of
  64 px has 4 cells at C5 and 256 at P2;
- object: SoCo (arXiv:2106.02637), eqs. 1 to 6 without the third view, on the FPN and through the box head.

A weight of 0 drops the term and everything that only this term needs: without the object term no boxes are needed and
no box head is trained; with C5's pixel term and no object term no FPN is trained either. The composition and its
weights are boxless's own; no paper has measured them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import RoIPool, Trunk
from boxless.errors import UserError
from boxless.geometry.boxes import assign_level, jitter
from boxless.geometry.view import View
from boxless.losses import byol_loss, object_contrastive_loss
from boxless.methods.crops import UnequalCrops
from boxless.methods.lc import LocalConfig, LocalTerm
from boxless.methods.method import MethodOutput
from boxless.methods.modules import mlp, move_targets, nothing, target_copy, with_all
from boxless.methods.soco import listed, placed, shared_boxes
from boxless.training.distributed import total
from boxless.training.optim import ema_momentum

Maps = dict[str, Tensor]
"""C2..C5 and P2..P5 (or P3..P5) by these names, (B, C, h, w) each."""


@dataclass(frozen=True)
class JointConfig(UnequalCrops):
    """Weights of the terms, and the hyper-parameters of their papers."""

    name: Literal["joint"] = "joint"
    global_weight: float = 1.0
    """Weight of BYOL's loss."""
    pixel_weight: float = 0.1
    """Weight of LC-loss; the paper gives it 0.1 / 0.9 of BYOL's weight."""
    object_weight: float = 1.0
    """Weight of SoCo's loss."""
    pixel_map: Literal["C5", "P2", "P3", "P4", "P5"] = "C5"
    """Map whose cells the pixel term compares; the logits of P2 need (H / 4)^4 numbers per image."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Range of the fraction of the image's area that V2 shows (SoCo)."""
    local: LocalConfig = LocalConfig()  # noqa: RUF009 (frozen)
    """Settings of the pixel term."""
    boxes: int = 4
    """Number K of boxes per image and step (SoCo)."""
    jitter: float = 0.1
    """Largest shift and growth of a jittered box, as a fraction of its sides (SoCo)."""
    jitter_probability: float = 0.5
    """Probability of jittering a box of V1 (SoCo)."""
    hidden: int = 4096
    """Width of the hidden layers of projectors and predictors of images and boxes (BYOL, SoCo)."""
    output: int = 256
    """Width of their projections and predictions (BYOL, SoCo)."""
    momentum: float = 0.99
    """Momentum of the target at the start; it rises to 1 (BYOL, SoCo)."""

    @property
    def needs_boxes(self) -> bool:
        """True if there is an object term."""
        return self.object_weight > 0

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it."""
        boxes = 2 if self.needs_boxes else 0
        return ViewSpec(self.size, self.first), ViewSpec(self.size, self.second, self.scale, min_boxes=boxes)

    def build(self, trunk: Trunk) -> "Joint":
        """Build the weighted terms around a trunk; the object term needs an FPN and a box head."""
        return Joint(trunk, self)


class Joint(nn.Module):
    """See the module's docstring.

    Raises:
        UserError: if no term has a weight, or if the object term has one and the trunk has no FPN.
    """

    def __init__(self, trunk: Trunk, config: JointConfig) -> None:
        super().__init__()
        weights = {"global": config.global_weight, "pixel": config.pixel_weight, "object": config.object_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise UserError("method.global_weight, pixel_weight, object_weight: all are 0; give one a weight above 0")
        pixels_on_pyramid = "pixel" in self.weights and config.pixel_map != "C5"
        if (config.needs_boxes or pixels_on_pyramid) and trunk.config.neck not in ("fpn", "hybrid"):
            raise UserError(
                f"trunk.neck: {trunk.config.neck}; the object term and a pixel_map of the pyramid need fpn or hybrid: "
                "set method.object_weight=0 and method.pixel_map=C5"
            )
        if pixels_on_pyramid and config.pixel_map == "P2" and trunk.config.neck == "hybrid":
            raise UserError("method.pixel_map: P2; the hybrid encoder gives P3, P4 and P5")
        self.config = config
        self.trains: tuple[str, ...] = ("backbone",)
        self.body = trunk.backbone.body
        self.target_body = target_copy(self.body)
        if config.needs_boxes or pixels_on_pyramid:
            head = ("RoI head",) if config.needs_boxes else ()
            self.trains = ("backbone", trunk.pyramid_name, *head)
            self.levels = _levels(trunk.roi_pool)
            self.fpn = trunk.backbone.fpn
            self.target_fpn = target_copy(self.fpn)
        if "global" in self.weights:
            self.images = _Prediction(nn.Identity(), trunk.body_width, config)
        if "pixel" in self.weights:
            width = trunk.config.fpn_channels if pixels_on_pyramid else trunk.body_width
            self.cells = LocalTerm(width, config.local)
        if "object" in self.weights:
            self.boxes = _Prediction(_Describe(trunk), trunk.head_width, config)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the weighted sum of the terms of two views of each image."""
        maps = [self._maps(view) for view in views]
        with torch.no_grad():
            target_maps = [self._maps(view, "target_") for view in views]
        outputs = {}
        if "global" in self.weights:
            outputs["global"] = self._global(maps, target_maps)
        if "pixel" in self.weights:
            outputs["pixel"] = self._pixel(maps, target_maps, views)
        if "object" in self.weights:
            outputs["object"] = self._object(maps, target_maps, views, boxes, valid, generator)
        loss = torch.stack([self.weights[name] * output.loss for name, output in outputs.items()]).sum()
        terms = {name: output.loss.detach() for name, output in outputs.items()}
        health = next((output for output in outputs.values() if output.online is not None), MethodOutput(loss, {}))
        return MethodOutput(loss, terms, health.online, health.target)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of all targets, which rises to 1 along a cosine."""
        return ema_momentum(step, total_steps, self.config.momentum)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the targets."""
        move_targets(self, self.momentum(step, total_steps))

    def _maps(self, view: View, of: str = "") -> Maps:
        """C2..C5 of a view, and the pyramid's levels if a term needs them, by the papers' names."""
        stages: Maps = getattr(self, f"{of}body")(view.image)
        named = {f"C{int(key) + 2}": value for key, value in stages.items()}
        if not hasattr(self, "fpn"):
            return named
        pyramid: Maps = getattr(self, f"{of}fpn")(stages)
        return named | {level: pyramid[key] for level, key in self.levels.items()}

    def _pixel(self, maps: list[Maps], target_maps: list[Maps], views: tuple[View, ...]) -> MethodOutput:
        """LC-loss from the cells of each view to those of the other."""
        online, target = ([each[self.config.pixel_map] for each in side] for side in (maps, target_maps))
        loss = self.cells(target[0], views[0], online[1], views[1]) + self.cells(
            target[1], views[1], online[0], views[0]
        )
        return MethodOutput(loss, {}, online[0].detach().mean((2, 3)), target[1].mean((2, 3)))

    def _global(self, maps: list[Maps], target_maps: list[Maps]) -> MethodOutput:
        """BYOL's loss of the averages of C5."""
        p1, p2 = (self.images.predict(each["C5"].mean((2, 3))) for each in maps)  # (B, output)
        t1, t2 = (self.images.target(each["C5"].mean((2, 3))) for each in target_maps)
        return MethodOutput(byol_loss(p1, t2) + byol_loss(p2, t1), {}, p1.detach(), t2)

    def _object(
        self,
        maps: list[Maps],
        target_maps: list[Maps],
        views: tuple[View, ...],
        boxes: Tensor,
        valid: Tensor,
        generator: torch.Generator,
    ) -> MethodOutput:
        """SoCo's loss of boxes that both views show."""
        source, present = shared_boxes(views, boxes, valid, self.config.boxes, generator)  # (B, K, 4), (B, K)
        if total(int(present.sum())) < 2:  # one vector has no batch statistics
            return MethodOutput(nothing(self), {})
        jittered = jitter(source, self.config.jitter, self.config.jitter_probability, generator)
        rois = [views[0].boxes(jittered)[0], views[1].boxes(source)[0]]

        def embed(network: Callable[..., Tensor], maps: list[Maps]) -> list[Tensor]:
            seen = zip(maps, views, rois, strict=True)
            return [network(each, listed(at, present), view.size) for each, view, at in seen]  # (R, output)

        v1, v2 = embed(self.boxes.predict, maps)
        t1, t2 = embed(self.boxes.target, target_maps)
        match = torch.diag_embed(present).to(v1.device, non_blocking=True)  # box k of one view is box k of the other
        pairs = [(placed(v, present), placed(t, present)) for v, t in ((v1, t2), (v2, t1))]
        loss = torch.stack([object_contrastive_loss(v, t, match) for v, t in pairs]).sum()  # eqs. 5 and 6
        return MethodOutput(loss, {}, v1.detach(), t2)


class _Prediction(nn.Module):
    """Representation, projector and predictor; the first two have EMA targets."""

    def __init__(self, represent: nn.Module, width: int, config: JointConfig) -> None:
        super().__init__()
        self.represent = represent
        self.projector = mlp(width, config.hidden, config.output)
        self.predictor = mlp(config.output, config.hidden, config.output)
        self.target_represent = target_copy(represent)
        self.target_projector = target_copy(self.projector)

    def predict(self, *seen: object) -> Tensor:
        """q(g(f(.))) of the online network, (N, output)."""
        prediction: Tensor = self.predictor(self.projector(self.represent(*seen)))
        return prediction

    @torch.no_grad()
    def target(self, *seen: object) -> Tensor:
        """g(f(.)) of the target network, (N, output)."""
        projection: Tensor = self.target_projector(self.target_represent(*seen))
        return projection


class _Describe(nn.Module):
    """h = f_H(RoIAlign(P, b)): boxes (R, 5) of a frame to (R, head width)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.roi_pool, self.box_head = trunk.roi_pool, trunk.box_head

    def forward(self, maps: Maps, rois: Tensor, frame: tuple[int, int]) -> Tensor:
        """Describe the boxes, each from its own level."""
        levels = {key: maps[level] for level, key in _levels(self.roi_pool).items()}
        pooled = self.roi_pool.pool(levels, rois, assign_level(rois[:, 1:]), frame)  # (R, C, 7, 7)
        described: Tensor = self.box_head(pooled)
        return with_all(described, levels)


def _levels(roi_pool: RoIPool) -> dict[str, str]:
    """The papers' and torchvision's names of the levels that boxes are pooled from."""
    return {f"P{number}": name for number, name in enumerate(roi_pool.featmap_names, start=roi_pool.first)}
