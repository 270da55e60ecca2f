"""Faster, Mask and Keypoint R-CNN of torchvision around a trunk, with a feature pyramid or on C4.

The C4 detectors are those of MoCo's and SoCo's transfer to VOC and COCO (Detectron2's R50-C4 with
`Res5ROIHeadsExtraNorm`): the RPN on C4 with 15 anchors a place, boxes pooled to 14 x 14, the last stage of the ResNet
with one more norm after it as the head of boxes and masks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from boxless.detectors.detector import BoxDetectorConfig, NormalizeAndPad, Targets
from boxless.detectors.trunk import LastStage, Neck, RoIPool, Trunk, norm_layer
from boxless.errors import UserError

C4_BEFORE_NMS = 6
"""Proposals before NMS to one after it: Detectron2's C4 keeps 12000 of all anchors, its FPN 2000 of each level."""


@dataclass(frozen=True)
class FasterRCNNConfig(BoxDetectorConfig):
    """Faster R-CNN (Ren et al., 2015, arXiv:1506.01497): boxes in two stages."""

    kind: str = "faster_rcnn"
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    """Side of the anchors on P2..P6 (all of them on C4), px; three aspect ratios each."""
    rpn_samples: int = 256
    """Anchors per image in the RPN's loss."""
    rpn_proposals: int = 2000
    """Proposals per image kept in training, from as many before NMS on each level (6 times as many on C4); half as
    many at test."""
    rpn_kept: int | None = None
    """Proposals kept in training after NMS; all by default. Detectron2 keeps 1000 on a pyramid and 1500 for
    keypoints."""
    roi_samples: int = 512
    """RoIs per image in the heads' loss; a quarter of them on objects."""
    box_beta: float = 1 / 9
    """Point at which the heads' box loss turns from a parabola into a line: torchvision's; Detectron2 has 0 (a line
    throughout) and 0.5 for keypoints."""

    necks: ClassVar[tuple[Neck, ...]] = ("fpn", "c4")
    uses_box_head: ClassVar[bool] = True
    ignores: ClassVar[bool] = True
    sure: ClassVar[float] = 0.5

    @property
    def proposals_at_test(self) -> int:
        """Proposals per image at test."""
        return max(self.rpn_proposals // 2, self.detections)

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> FasterRCNN:
        """torchvision's FasterRCNN around a trunk; see `DetectorConfig`."""
        return _finished(FasterRCNN(trunk.backbone, **_options(self, trunk, classes)), trunk, self)


@dataclass(frozen=True)
class MaskRCNNConfig(FasterRCNNConfig):
    """Mask R-CNN (He et al., 2017, arXiv:1703.06870): boxes and masks in two stages."""

    kind: Literal["mask_rcnn"] = "mask_rcnn"
    mask_norm: bool = False
    """Put the trunk's norm behind the convolutions of a pyramid's mask head, as in the transfers of SoCo, PixPro and
    DenseCL; those of MoCo and DetCo have none."""

    targets: ClassVar[Targets] = "masks"

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> MaskRCNN:
        """torchvision's MaskRCNN around a trunk; see `DetectorConfig`."""
        options = _options(self, trunk, classes)
        branch = _mask_branch(trunk, options["box_head"], classes, self.mask_norm)
        return _finished(MaskRCNN(trunk.backbone, **options, **branch), trunk, self)


@dataclass(frozen=True)
class KeypointRCNNConfig(FasterRCNNConfig):
    """Keypoint R-CNN (He et al., 2017, arXiv:1703.06870): boxes and keypoints in two stages."""

    kind: Literal["keypoint_rcnn"] = "keypoint_rcnn"

    necks: ClassVar[tuple[Neck, ...]] = ("fpn",)
    targets: ClassVar[Targets] = "keypoints"

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> KeypointRCNN:
        """torchvision's KeypointRCNN around a trunk; see `DetectorConfig`."""
        options = _options(self, trunk, classes)
        return _finished(KeypointRCNN(trunk.backbone, **options, **_keypoint_branch(trunk, keypoints)), trunk, self)


def _options(config: FasterRCNNConfig, trunk: Trunk, classes: int) -> dict[str, Any]:
    """The arguments that all of torchvision's two-stage detectors take."""
    single = trunk.config.neck == "c4"
    before_nms = C4_BEFORE_NMS if single else 1
    at_test = config.proposals_at_test
    sizes = (config.anchor_sizes,) if single else tuple((size,) for size in config.anchor_sizes)
    return {
        "rpn_anchor_generator": Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        "rpn_batch_size_per_image": config.rpn_samples,
        "rpn_pre_nms_top_n_train": before_nms * config.rpn_proposals,
        "rpn_post_nms_top_n_train": config.rpn_kept or config.rpn_proposals,
        "rpn_pre_nms_top_n_test": before_nms * at_test,
        "rpn_post_nms_top_n_test": at_test,
        "box_roi_pool": trunk.roi_pool,
        "box_head": NormedLastStage(trunk) if single else trunk.box_head,
        "box_predictor": FastRCNNPredictor(trunk.head_width, classes + 1),
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
    }


def _finished(detector: FasterRCNN, trunk: Trunk, config: FasterRCNNConfig) -> FasterRCNN:
    """The detector with our box loss, for images that already have their final size, and boxes in full precision."""
    if config.box_beta != FasterRCNNConfig.box_beta:
        detector.roi_heads.__class__ = BetaRoIHeads  # torchvision's detectors build their heads themselves
        detector.roi_heads.box_beta = config.box_beta
    detector.rpn.__class__ = IgnoringRPN
    detector.transform = NormalizeAndPad(trunk)
    for head in (detector.rpn.head, detector.roi_heads.box_predictor):
        head.register_forward_hook(_in_float32)
    return detector


def _in_float32(_: nn.Module, __: Any, output: tuple[Any, Any]) -> tuple[Any, Any]:
    """A head's scores and offsets: torchvision makes boxes of their type, which in bf16 are whole pixels, and ties."""
    scores, offsets = output
    if isinstance(scores, list):  # one for each level
        return [level.float() for level in scores], [level.float() for level in offsets]
    return scores.float(), offsets.float()


def _mask_branch(trunk: Trunk, box_head: nn.Module, classes: int, normed: bool) -> dict[str, nn.Module]:
    if isinstance(box_head, NormedLastStage):
        if normed:
            raise UserError("detector.mask_norm: true; masks on C4 share the box head with its norms, set it to false")
        return {
            "mask_roi_pool": trunk.roi_pool,
            "mask_head": SharedHead(box_head),
            "mask_predictor": MaskRCNNPredictor(trunk.head_width, 256, classes + 1),
        }
    width = trunk.config.fpn_channels
    return {
        "mask_head": MaskRCNNHeads(width, (width,) * 4, 1, norm_layer(trunk.config.norm) if normed else None),
        "mask_predictor": MaskRCNNPredictor(width, width, classes + 1),
    }


def _keypoint_branch(trunk: Trunk, keypoints: int) -> dict[str, nn.Module]:
    width = 2 * trunk.config.fpn_channels  # 512, as in the paper, on a pyramid of its width
    return {
        "keypoint_roi_pool": RoIPool(14),
        "keypoint_head": KeypointRCNNHeads(trunk.config.fpn_channels, (width,) * 8),
        "keypoint_predictor": FullPrecisionPredictor(width, keypoints),
    }


class FullPrecisionPredictor(KeypointRCNNPredictor):  # type: ignore[misc]
    """torchvision's heatmaps of keypoints, which in half precision would have their highest value in many places.

    Its loss views them as (R K, 56 56), which channels that lie last in memory do not allow.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (R, C, 14, 14) to heatmaps (R, K, 56, 56)."""
        with torch.autocast(maps.device.type, enabled=False):
            heatmaps: Tensor = super().forward(maps.float())
        return heatmaps.contiguous()


class NormedLastStage(LastStage):
    """A C4 trunk's box head with a new norm on its maps, which keeps a pretrained stage's scale from the predictor."""

    def __init__(self, trunk: Trunk) -> None:
        assert isinstance(trunk.box_head, LastStage)
        super().__init__(trunk.box_head.layer4)
        self.norm = norm_layer(trunk.config.norm)(trunk.head_width)

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C, 7, 7)."""
        maps: Tensor = self.norm(super().maps(pooled))
        return maps


class SharedHead(nn.Module):
    """The maps of the box head, for masks.

    Detectron2 takes the maps of foreground boxes out of those of all boxes; torchvision pools them once more. So that
    norms neither learn from these boxes twice nor fail without any, they are used with their running statistics.
    """

    def __init__(self, box_head: NormedLastStage) -> None:
        super().__init__()
        self._box_head = (box_head,)  # in a tuple, so that its weights are not registered (and saved) twice

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C, 7, 7)."""
        (head,) = self._box_head
        training = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        for norm in training:
            norm.training = False
        maps = head.maps(pooled)
        for norm in training:
            norm.training = True
        return maps


class IgnoringRPN(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN, for which anchors on ignored objects are no background.

    The RoI heads need no such care: torchvision does not sample boxes of label -1.
    """

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (1 object, 0 background, -1 neither) and boxes of each image's anchors."""
        if not any("ignored" in target for target in targets):
            labels, boxes = super().assign_targets_to_anchors(anchors, targets)
            return labels, boxes
        known = [{**target, "boxes": target["boxes"][target["labels"] > 0]} for target in targets]
        labels, boxes = super().assign_targets_to_anchors(anchors, known)
        for label, places, target in zip(labels, anchors, targets, strict=True):
            ignored = target["boxes"][target["labels"] < 0]
            if len(ignored):
                match = self.proposal_matcher(self.box_similarity(ignored, places))
                label[(label == 0) & (match != self.proposal_matcher.BELOW_LOW_THRESHOLD)] = -1
        return labels, boxes


class BetaRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads with another smooth L1 loss of boxes than its own, whose beta is 1/9.

    What that loss is of is kept for the length of a step: torchvision's `forward` offers no other place for it.
    """

    box_beta: float

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        """torchvision's, of which labels and offsets are kept."""
        samples = super().select_training_samples(proposals, targets)
        self._labels, self._offsets = torch.cat(samples[2]), torch.cat(samples[3])
        return samples

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        """torchvision's results and losses."""
        predicted: list[Tensor] = []
        hook = self.box_predictor.register_forward_hook(lambda _, __, output: predicted.append(output[1]))
        try:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        if self.training:
            losses["loss_box_reg"] = box_loss(predicted[0], self._labels, self._offsets, self.box_beta)
            del self._labels, self._offsets
        return result, losses


def box_loss(predicted: Tensor, labels: Tensor, offsets: Tensor, beta: float) -> Tensor:
    """Smooth L1 of boxes on objects, summed and divided by the number of all boxes, as in Detectron2 and torchvision.

    Args:
        predicted: (R, 4 (classes + 1)), offsets by class.
        labels: (R,), 0 is background.
        offsets: (R, 4), wanted.
        beta: point at which the parabola turns into a line; 0: L1.
    """
    (on_object,) = torch.where(labels > 0)
    of_class = predicted.view(len(labels), -1, 4)[on_object, labels[on_object]]
    return smooth_l1_loss(of_class.float(), offsets[on_object], reduction="sum", beta=beta) / len(labels)


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's, in float32 at least: its own are of the maps' type, which in bf16 moves them by up to 8 px."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Take the type and device that anchors should have."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)
