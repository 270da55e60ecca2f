"""Sparse R-CNN (Sun et al., 2021, arXiv:2011.12450) around a trunk with a feature pyramid.

A few boxes and their features are learned; six stages look at each image inside their boxes and move them. There are no
anchors, no RPN and no NMS. The trunk's own box head is not used.

Names and sizes are the paper's and its code's (github.com/PeizeSun/SparseR-CNN), at whatever width the pyramid has: 256
channels there, and everything else in proportion. Departures from the code: the pyramid has the trunk's norms; the bias
of the class scores alone starts at the prior (there also any weight whose last side happens to be the number of
classes); biases and norms are not decayed; losses are summed over the stages.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert

from boxless.detectors.criterion import Objects, focal_set_loss, match
from boxless.detectors.detector import BoxDetectorConfig, NormalizeAndPad, frames, surest_pairs
from boxless.detectors.trunk import Neck, RoIPool, Trunk

STAGES = 6
CODER = BoxCoder((2.0, 2.0, 1.0, 1.0), math.log(100_000 / 16))
"""Box deltas of a stage: shifts as fractions of half a side, sides on a log scale, at most 6250-fold."""
PRIOR = 0.01
"""Score of every class at the start (focal loss)."""


@dataclass(frozen=True)
class SparseRCNNConfig(BoxDetectorConfig):
    """Sparse R-CNN's settings."""

    kind: Literal["sparse_rcnn"] = "sparse_rcnn"
    learned_proposals: int = 300
    """Boxes per image, all learned; the paper's smaller model has 100."""

    necks: ClassVar[tuple[Neck, ...]] = ("fpn",)

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> "SparseRCNN":
        """Sparse R-CNN around a trunk; see `DetectorConfig`."""
        return SparseRCNN(trunk, classes, self)


class SparseRCNN(nn.Module):
    """Sparse R-CNN, called as torchvision's detectors are.

    Args:
        trunk: with `neck="fpn"`; its backbone becomes the detector's (not a copy).
        classes: without background; labels are 1..classes.
        config: its settings.
    """

    def __init__(self, trunk: Trunk, classes: int, config: SparseRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.score_thresh = config.score_threshold  # the name that torchvision has
        width = trunk.config.fpn_channels
        self.backbone = trunk.backbone
        # Boxes may grow far beyond the image: adaptive sampling, the trunk's, would take samples without end there.
        self.roi_pool = RoIPool(sampling=2)
        self.proposal_boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1, 1]).repeat(config.learned_proposals, 1))  # cxcywh
        self.proposal_features = nn.Parameter(torch.randn(config.learned_proposals, width))
        self.stages = nn.ModuleList(Stage(width, classes) for _ in range(STAGES))
        self.transform = NormalizeAndPad(trunk)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses of images (3, H, W) in 0..1 with their targets in training; else what is found in each.

        Args:
            images: at their final size.
            targets: boxes (T, 4) in px and labels (T,) from 1.

        Returns:
            loss_classes, loss_l1, loss_giou; or per image boxes (D, 4) in px, scores (D,), labels (D,) from 1.
        """
        batch, _ = self.transform(images)
        sizes = frames(batch.image_sizes, batch.tensors.device)
        logits, boxes = self.refined(self.backbone(batch.tensors), sizes, batch.image_sizes)
        if not self.training:
            found = zip(logits[-1], boxes[-1], batch.image_sizes, strict=True)
            return [surest_pairs(*one, self.config.detections, self.score_thresh) for one in found]
        assert targets is not None, "training needs targets"
        objects = Objects.of(targets, sizes, "xyxy")
        shares = boxes / sizes[:, None]
        matching = match(logits, shares, objects, focal=True)
        losses = focal_set_loss(logits, shares, objects, matching, objects.mean_count())
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def refined(
        self, maps: dict[str, Tensor], sizes: Tensor, image_sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Outputs of all stages for the learned boxes, in order.

        Args:
            maps: P2..P5, by torchvision's names.
            sizes: (B, 4), each image's width, height, width, height, px.
            image_sizes: height and width of each image, px.

        Returns:
            class logits (L, B, N, classes) and boxes (L, B, N, 4), xyxy px, of the L stages.
        """
        boxes = box_convert(self.proposal_boxes, "cxcywh", "xyxy") * sizes[:, None]
        state = self.proposal_features.expand(len(sizes), -1, -1)
        logits_of, boxes_of = [], []
        for stage in self.stages:
            pooled = self.roi_pool(maps, list(_finite(boxes.detach())), image_sizes)
            logits, deltas, state = stage(pooled, state)
            boxes = CODER.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
            logits_of.append(logits)
            boxes_of.append(boxes)
            boxes = boxes.detach()  # a stage learns from its own step alone, not from where the next one goes
        return torch.stack(logits_of), torch.stack(boxes_of)


class Stage(nn.Module):
    """One stage: proposals look at each other, then into their boxes, and say what is there and where.

    Args:
        width: C, of the pyramid.
        classes: without background.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, math.gcd(8, width), batch_first=True)
        self.interaction = DynamicInteraction(width)
        self.feedforward = nn.Sequential(nn.Linear(width, 8 * width), nn.ReLU(), nn.Linear(8 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.class_tower, self.box_tower = _tower(width, layers=1), _tower(width, layers=3)
        self.class_logits, self.box_deltas = nn.Linear(width, classes), nn.Linear(width, 4)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pooled: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, N, classes), box deltas (B, N, 4) and new state (B, N, C); the first two in full precision.

        Args:
            pooled: (B * N, C, 7, 7), what is in the boxes.
            state: (B, N, C), the proposals' features.
        """
        state = self.norms[0](state + self.attention(state, state, state, need_weights=False)[0])
        seen = self.interaction(state.flatten(0, 1), pooled).view_as(state)
        state = self.norms[1](state + seen)
        state = self.norms[2](state + self.feedforward(state))
        logits, deltas = self.class_logits(self.class_tower(state)), self.box_deltas(self.box_tower(state))
        full = torch.promote_types(logits.dtype, torch.float32)  # with 16 bits a box would be off by whole pixels
        return logits.to(full), deltas.to(full), state


class DynamicInteraction(nn.Module):
    """Dynamic instance interaction: each proposal makes two 1 x 1 convolutions for what is in its own box.

    Args:
        width: C; between the two convolutions there are C / 4 channels.
        side: side of the pooled features, cells.
    """

    def __init__(self, width: int, side: int = 7) -> None:
        super().__init__()
        self.width, self.narrow = width, max(1, width // 4)
        self.kernels = nn.Linear(width, 2 * width * self.narrow)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in (self.narrow, width, width))
        self.out = nn.Linear(side * side * width, width)

    def forward(self, state: Tensor, pooled: Tensor) -> Tensor:
        """Proposals (R, C) and what is in their boxes (R, C, S, S) to what they make of it (R, C)."""
        first, second = self.kernels(state).chunk(2, 1)
        cells = pooled.flatten(2).transpose(1, 2)  # (R, S * S, C)
        cells = relu(self.norms[0](cells @ first.view(-1, self.width, self.narrow)))
        cells = relu(self.norms[1](cells @ second.view(-1, self.narrow, self.width)))
        return relu(self.norms[2](self.out(cells.flatten(1))))


def _tower(width: int, layers: int) -> nn.Sequential:
    steps = [(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*(module for step in steps for module in step))


def _finite(boxes: Tensor) -> Tensor:
    """Boxes that can be pooled: RoIAlign would read outside its memory at the NaN of a network that has diverged."""
    return boxes.nan_to_num(0.0).clamp(-1e6, 1e6)
