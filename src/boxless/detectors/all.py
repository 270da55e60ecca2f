"""All detectors by their names."""

from boxless.detectors.detector import DetectorConfig
from boxless.detectors.detr import DETRConfig
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.rt_detr import RTDETRConfig
from boxless.detectors.sparse_rcnn import SparseRCNNConfig
from boxless.detectors.two_stage import FasterRCNNConfig, KeypointRCNNConfig, MaskRCNNConfig

DETECTORS: dict[str, type[DetectorConfig]] = {
    "faster_rcnn": FasterRCNNConfig,
    "mask_rcnn": MaskRCNNConfig,
    "keypoint_rcnn": KeypointRCNNConfig,
    "retinanet": RetinaNetConfig,
    "fcos": FCOSConfig,
    "sparse_rcnn": SparseRCNNConfig,
    "detr": DETRConfig,
    "rt_detr": RTDETRConfig,
    "fcn": FCNConfig,
}
"""The names that `detector.kind` takes, and the class of each one's settings."""
