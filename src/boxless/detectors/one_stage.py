"""RetinaNet (Lin et al., 2017, arXiv:1708.02002) and FCOS (Tian et al., 2019, arXiv:1904.01355) around a trunk.

Both are torchvision's, on P3..P7. P3..P5 are the trunk's, whose neck is `fpn_p3`; P6 and P7 are the detector's own.
Nothing looks at P2, which would cost more than all other levels together and leave parameters without gradient.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxless.detectors.detector import BoxDetectorConfig, NormalizeAndPad
from boxless.detectors.trunk import Neck, Trunk
from boxless.detectors.two_stage import Anchors
from boxless.errors import UserError

SURELY_NOT = -1e4
"""Score of a class whose focal loss and gradient are zero."""


@dataclass(frozen=True)
class RetinaNetConfig(BoxDetectorConfig):
    """RetinaNet's settings."""

    kind: Literal["retinanet"] = "retinanet"
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    """Side of the anchors on P3..P7, px, with two larger ones to the octave; three aspect ratios each."""
    loss_normalizer: Literal["image", "moving_average"] = "image"
    """Divisor of the losses: each image's anchors on objects, as in the paper, or Detectron2's moving average of a
    batch's."""

    necks: ClassVar[tuple[Neck, ...]] = ("fpn_p3",)
    ignores: ClassVar[bool] = True

    @property
    def octave_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Sides of the anchors on each level, px: three to an octave (section 4), rounded as torchvision does."""
        return tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in self.anchor_sizes)

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> RetinaNet:
        """torchvision's RetinaNet around a trunk, whose pyramid gets P6 and P7; see `DetectorConfig`."""
        width = trunk.config.fpn_channels
        trunk.backbone.fpn.extra_blocks = LastLevelP6P7(trunk.body_width, width)  # from C5, as in the paper
        options = {"score_thresh": self.score_threshold, "detections_per_img": self.detections}
        head = AveragedHead if self.loss_normalizer == "moving_average" else IgnoringRetinaNetHead
        options["head"] = head(width, 9, classes)
        anchors = Anchors(self.octave_sizes, ((0.5, 1.0, 2.0),) * 5)
        detector = BoxlessRetinaNet(trunk.backbone, classes, anchor_generator=anchors, **options)
        detector.transform = NormalizeAndPad(trunk)
        return detector


@dataclass(frozen=True)
class FCOSConfig(BoxDetectorConfig):
    """FCOS's settings."""

    kind: Literal["fcos"] = "fcos"

    necks: ClassVar[tuple[Neck, ...]] = ("fpn_p3",)
    ignores: ClassVar[bool] = True

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> FCOS:
        """torchvision's FCOS around a trunk, whose pyramid gets P6 and P7; see `DetectorConfig`.

        Raises:
            UserError: for a pyramid whose width FCOS's norms can not divide.
        """
        width = trunk.config.fpn_channels
        if width % 32:
            raise UserError(f"trunk.fpn_channels: {width}; FCOS has norms of 32 groups, expected a multiple of 32")
        trunk.backbone.fpn.extra_blocks = LastLevelP6P7(width, width)  # from P5, as in the paper
        cells = Anchors(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)  # torchvision's: a level's stride
        options = {"score_thresh": self.score_threshold, "detections_per_img": self.detections}
        options["head"] = IgnoringFCOSHead(width, 1, classes)
        detector = BoxlessFCOS(trunk.backbone, classes, anchor_generator=cells, **options)
        detector.transform = NormalizeAndPad(trunk)
        return detector


def _on_ignored(targets: list[dict[str, Tensor]], matched_idxs: list[Tensor]) -> list[Tensor]:
    """Places of each image that are matched with an ignored object, (P,) bool."""
    return [
        (matched >= 0) & target["ignored"][matched.clamp(min=0)]
        if len(target.get("ignored", ()))
        else torch.zeros_like(matched, dtype=torch.bool)
        for target, matched in zip(targets, matched_idxs, strict=True)
    ]


class IgnoringRetinaNetHead(RetinaNetHead):  # type: ignore[misc]
    """torchvision's head, for which anchors on ignored objects are neither objects nor background."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss and L1."""
        if any("ignored" in target for target in targets):
            hidden = _on_ignored(targets, matched_idxs)
            matched_idxs = [
                matched.masked_fill(places, Matcher.BETWEEN_THRESHOLDS)
                for matched, places in zip(matched_idxs, hidden, strict=True)
            ]
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return losses


class IgnoringFCOSHead(FCOSHead):  # type: ignore[misc]
    """torchvision's head, for which places on ignored objects are neither objects nor background."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU and centre-ness."""
        if any("ignored" in target for target in targets):
            hidden = _on_ignored(targets, matched_idxs)
            matched_idxs = [
                matched.masked_fill(places, -1) for matched, places in zip(matched_idxs, hidden, strict=True)
            ]
            sure = head_outputs["cls_logits"].masked_fill(torch.stack(hidden)[..., None], SURELY_NOT)
            head_outputs = {**head_outputs, "cls_logits": sure}
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return losses


class AveragedHead(IgnoringRetinaNetHead):
    """torchvision's head with Detectron2's losses: a batch's sums, divided by a moving average of its positive anchors.

    The average starts at 100 and keeps 0.9 of itself in each step; images with many objects so count more than others.
    """

    positives: Tensor

    def __init__(self, width: int, anchors: int, classes: int) -> None:
        super().__init__(width, anchors, classes)
        self.register_buffer("positives", torch.tensor(100.0))

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss and L1 of all images."""
        pairs = zip(matched_idxs, _on_ignored(targets, matched_idxs), strict=True)
        counts = torch.stack([((matched >= 0) & ~ignored).sum() for matched, ignored in pairs])
        self.positives = self.positives.lerp(counts.sum().clamp(min=1).float(), 0.1)
        sums: dict[str, Tensor] = {}
        for image, (target, places, matched) in enumerate(zip(targets, anchors, matched_idxs, strict=True)):
            outputs = {name: values[image : image + 1] for name, values in head_outputs.items()}
            of_image = super().compute_loss([target], outputs, [places], [matched])
            for name, loss in of_image.items():  # torchvision has divided it by this image's positives
                sums[name] = sums.get(name, 0) + loss * counts[image].clamp(min=1)
        return {name: total / self.positives for name, total in sums.items()}


class LabelsFromOne(nn.Module):
    """Labels 1..classes, as all of boxless' detectors have them, for torchvision's that count from 0.

    Losses and boxes are computed in full precision from what the head gives: in half precision FCOS's boxes would end
    on every fourth pixel of a large image.
    """

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], *anchors: Any
    ) -> dict[str, Tensor]:
        """torchvision's losses for labels from 1."""
        from_zero = [{**target, "labels": target["labels"] - 1} for target in targets]
        outputs = {name: value.float() for name, value in head_outputs.items()}
        losses: dict[str, Tensor] = super().compute_loss(from_zero, outputs, *anchors)  # type: ignore[misc]
        return losses

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """torchvision's detections with labels from 1."""
        outputs = {name: [level.float() for level in levels] for name, levels in head_outputs.items()}
        found: list[dict[str, Tensor]] = super().postprocess_detections(outputs, anchors, image_shapes)  # type: ignore[misc]
        return [{**one, "labels": one["labels"] + 1} for one in found]


class BoxlessRetinaNet(LabelsFromOne, RetinaNet):  # type: ignore[misc]
    """torchvision's RetinaNet with labels from 1."""


class BoxlessFCOS(LabelsFromOne, FCOS):  # type: ignore[misc]
    """torchvision's FCOS with labels from 1."""
