"""Faster R-CNN and Mask R-CNN of torchvision around a trunk."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from boxless.detectors.trunk import Trunk


@dataclass(frozen=True)
class DetectorConfig:
    """A two-stage detector's size; the defaults are torchvision's, which are the papers'."""

    kind: Literal["faster_rcnn", "mask_rcnn"] = "faster_rcnn"
    """Boxes alone, or boxes and masks."""
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    """Side of the anchors on P2..P6, px; three aspect ratios each."""
    rpn_samples: int = 256
    """Anchors per image in the RPN's loss."""
    rpn_proposals: int = 2000
    """Proposals per image kept in training; half as many at test."""
    roi_samples: int = 512
    """RoIs per image in the heads' loss; a quarter of them on objects."""
    score_threshold: float = 0.05
    """Detections below it are dropped."""
    detections: int = 100
    """At most, per image."""


def two_stage(trunk: Trunk, classes: int, config: DetectorConfig) -> FasterRCNN:
    """A detector around the trunk's own modules (not copies).

    Args:
        trunk: its backbone, RoI pooling and box head become the detector's.
        classes: without background; the detector's labels are 1..classes, 0 is background.
        config: kind and sizes.

    Returns:
        torchvision's FasterRCNN or MaskRCNN. It takes images that already have their final size.
    """
    width = trunk.config.fpn_channels
    options = {
        "rpn_anchor_generator": AnchorGenerator(tuple((s,) for s in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5),
        "rpn_batch_size_per_image": config.rpn_samples,
        "rpn_pre_nms_top_n_train": config.rpn_proposals,
        "rpn_post_nms_top_n_train": config.rpn_proposals,
        "rpn_pre_nms_top_n_test": max(config.rpn_proposals // 2, config.detections),
        "rpn_post_nms_top_n_test": max(config.rpn_proposals // 2, config.detections),
        "box_roi_pool": trunk.roi_pool,
        "box_head": trunk.box_head,
        "box_predictor": FastRCNNPredictor(trunk.config.box_head_width, classes + 1),
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
    }
    if config.kind == "faster_rcnn":
        detector = FasterRCNN(trunk.backbone, **options)
    else:
        mask_head: nn.Module = MaskRCNNHeads(width, (width,) * 4, 1)
        detector = MaskRCNN(
            trunk.backbone,
            mask_head=mask_head,
            mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
            **options,
        )
    detector.transform = NormalizeAndPad(0, 0, list(trunk.config.mean), list(trunk.config.std))
    return detector


class NormalizeAndPad(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform without its resizing: the loader has resized, so that the maps stay in one place.

    torchvision's own `_skip_resize` holds in training only; at test it would enlarge every image to 800 px.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image and its target as they are."""
        return image, target
