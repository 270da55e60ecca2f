"""DETR (Carion et al., 2020, arXiv:2005.12872) around a trunk whose neck is a transformer.

Departure from the authors' code: pixels are padded to a multiple of 32.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from boxless.detectors.criterion import Objects, match, set_loss
from boxless.detectors.detector import BoxDetectorConfig, NormalizeAndPad, frames
from boxless.detectors.trunk import Neck, Trunk


@dataclass(frozen=True)
class DETRConfig(BoxDetectorConfig):
    """DETR's settings; the sizes of its transformer are the trunk's."""

    kind: Literal["detr"] = "detr"
    no_object: float = 0.1
    """Weight of queries without an object; lower it if images show few objects."""

    necks: ClassVar[tuple[Neck, ...]] = ("transformer",)
    sure: ClassVar[float] = 0.5

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> "DETR":
        """DETR around a trunk; see `DetectorConfig`."""
        return DETR(trunk, classes, self)


class DETR(nn.Module):
    """DETR, called as torchvision's detectors are.

    Args:
        trunk: with `neck="transformer"`; its modules become the detector's (not copies).
        classes: without background; labels are 1..classes.
        config: its settings.
    """

    def __init__(self, trunk: Trunk, classes: int, config: DETRConfig) -> None:
        super().__init__()
        self.config = config
        self.score_thresh = config.score_threshold  # the name that torchvision has
        self.backbone, self.transformer = trunk.backbone, trunk.transformer
        self.class_labels_classifier = nn.Linear(trunk.config.transformer.width, classes + 1)  # the last: no object
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
        features = self.backbone.body(batch.tensors)["3"]
        states = self.transformer(features, _seen(features, batch.tensors, sizes))  # (L, B, N, width)
        logits, boxes = self.class_labels_classifier(states), self.transformer.boxes(states)
        if not self.training:
            return self._found(logits[-1], boxes[-1], sizes)
        assert targets is not None, "training needs targets"
        objects = Objects.of(targets, sizes, "cxcywh")
        matching = match(logits, boxes, objects)
        losses = set_loss(logits, boxes, objects, matching, self.config.no_object, objects.mean_count())
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def _found(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, N)
        corners = box_convert(boxes, "cxcywh", "xyxy") * sizes[:, None]
        limits = sizes[:, None].expand_as(corners)
        corners = torch.minimum(corners.clamp(min=0), limits)
        found = []
        for box, score, label in zip(corners, scores, labels + 1, strict=True):
            best = score.argsort(descending=True)[: self.config.detections]
            best = best[score[best] > self.score_thresh]
            found.append({"boxes": box[best], "scores": score[best], "labels": label[best]})
        return found


def _seen(features: Tensor, images: Tensor, sizes: Tensor) -> Tensor:
    """Mask of the feature map's cells that begin inside their image and not in its padding, (B, h, w)."""
    (rows, columns), (height, width) = features.shape[-2:], images.shape[-2:]
    top = torch.arange(rows, device=sizes.device) * (height / rows)
    left = torch.arange(columns, device=sizes.device) * (width / columns)
    return (top < sizes[:, 1:2])[:, :, None] & (left < sizes[:, :1])[:, None]
