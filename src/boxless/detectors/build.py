"""The detector of a kind around a trunk."""

from dataclasses import replace

from torch import nn

from boxless.detectors.detr import Detr
from boxless.detectors.fcn import FCN
from boxless.detectors.one_stage import one_stage
from boxless.detectors.rt_detr import RTDetr
from boxless.detectors.sparse_rcnn import SparseRCNN
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.detectors.two_stage import DetectorConfig, two_stage


def build_detector(trunk: Trunk, classes: int, config: DetectorConfig, keypoints: int = 0) -> nn.Module:
    """A detector around the trunk's own modules (not copies), called as torchvision's are.

    Args:
        trunk: whose neck suits the kind; see `fitting`.
        classes: without background; the detector's labels are 1..classes. Of FCN: all, 0-based.
        config: kind and sizes.
        keypoints: of every object, for Keypoint R-CNN.
    """
    if config.kind == "fcn":
        return FCN(trunk, classes, config.fcn)
    if config.kind == "detr":
        return Detr(trunk, classes, config)
    if config.kind == "sparse_rcnn":
        return SparseRCNN(trunk, classes, config)
    if config.kind == "rt_detr":
        return RTDetr(trunk, classes, config)
    if config.kind in ("retinanet", "fcos"):
        return one_stage(trunk, classes, config)
    detector: nn.Module = two_stage(trunk, classes, config, keypoints)
    return detector


def build_trunk(trunk: TrunkConfig, config: DetectorConfig) -> Trunk:
    """The trunk of a detector, without a box head that it would not use: reports then say nothing of it."""
    built = Trunk(trunk)
    if config.kind in ("sparse_rcnn", "rt_detr"):
        del built.box_head
    return built


def fitting(trunk: TrunkConfig, config: DetectorConfig) -> TrunkConfig:
    """The trunk with the neck that the detector needs: a transformer for DETR, its hybrid encoder for RT-DETR, a
    pyramid from P3 up for the one-stage kinds, none for FCN, either of pyramid and C4 for Faster and Mask R-CNN, and a
    pyramid for others."""
    if config.kind == "rt_detr":
        return replace(trunk, neck="hybrid")
    if config.kind == "fcn":
        return replace(trunk, neck="none")
    if config.kind == "detr":
        return replace(trunk, neck="transformer")
    if config.kind in ("retinanet", "fcos"):
        return replace(trunk, neck="fpn_p3")
    if config.kind in ("faster_rcnn", "mask_rcnn") and trunk.neck == "c4":
        return trunk
    return replace(trunk, neck="fpn")


def keep_above(detector: nn.Module, score: float) -> None:
    """Make a detector give only what it finds with more than `score`, 0..1."""
    part = getattr(detector, "roi_heads", detector)
    part.score_thresh = score
