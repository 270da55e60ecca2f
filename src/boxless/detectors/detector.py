"""The detector of a kind around a trunk."""

from dataclasses import replace

from torch import nn

from boxless.detectors.detr import Detr
from boxless.detectors.sparse_rcnn import SparseRCNN
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.detectors.two_stage import DetectorConfig, two_stage


def build_detector(trunk: Trunk, classes: int, config: DetectorConfig) -> nn.Module:
    """A detector around the trunk's own modules (not copies), called as torchvision's are.

    Args:
        trunk: whose neck suits the kind; see `fitting`.
        classes: without background; the detector's labels are 1..classes.
        config: kind and sizes.
    """
    if config.kind == "detr":
        return Detr(trunk, classes, config)
    if config.kind == "sparse_rcnn":
        return SparseRCNN(trunk, classes, config)
    return two_stage(trunk, classes, config)


def build_trunk(trunk: TrunkConfig, config: DetectorConfig) -> Trunk:
    """The trunk of a detector, without a box head that it would not use: reports then say nothing of it."""
    built = Trunk(trunk)
    if config.kind == "sparse_rcnn":
        del built.box_head
    return built


def fitting(trunk: TrunkConfig, config: DetectorConfig) -> TrunkConfig:
    """The trunk with the neck that the detector needs: a transformer for DETR, a pyramid for Sparse R-CNN, either of
    pyramid and C4 for others."""
    if config.kind == "detr":
        return replace(trunk, neck="transformer")
    if config.kind == "sparse_rcnn" or trunk.neck == "transformer":
        return replace(trunk, neck="fpn")
    return trunk


def keep_above(detector: nn.Module, score: float) -> None:
    """Make a detector give only what it finds with more than `score`, 0..1."""
    part = detector if isinstance(detector, Detr | SparseRCNN) else detector.get_submodule("roi_heads")
    part.score_thresh = score  # type: ignore[assignment]
