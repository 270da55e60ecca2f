"""The lines of Python that build torchvision's models as boxless has them, and load weights into them."""

from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import FasterRCNNConfig, KeypointRCNNConfig, MaskRCNNConfig

HEADS = {"swin_t": "head", "mobilenet_v2": "classifier"}
"""Attributes of the classifiers, where they are not `fc`."""

CLASSES: dict[type, str] = {
    FasterRCNNConfig: "FasterRCNN",
    MaskRCNNConfig: "MaskRCNN",
    KeypointRCNNConfig: "KeypointRCNN",
    RetinaNetConfig: "RetinaNet",
    FCOSConfig: "FCOS",
}
"""torchvision's classes of detectors."""

_NORMS = {
    "batch": "torch.nn.BatchNorm2d",
    "sync": "torch.nn.BatchNorm2d",
    "frozen": "torchvision.ops.FrozenBatchNorm2d",
    "group": "lambda channels: torch.nn.GroupNorm(math.gcd(32, channels), channels)",
}


def backbone_code(trunk: TrunkConfig, file: str) -> list[str]:
    """A classifier's body with weights."""
    return [
        *_start(trunk),
        f"model.{HEADS.get(trunk.backbone, 'fc')} = torch.nn.Identity()  # a detector's body has no classifier",
        f'model.load_state_dict(load_file("{file}"))',
    ]


def _start(trunk: TrunkConfig) -> list[str]:
    return [
        "from safetensors.torch import load_file",
        "",
        f"norm = {_NORMS[trunk.norm]}",
        f"model = torchvision.models.{trunk.backbone}({'' if trunk.backbone == 'swin_t' else 'norm_layer=norm'})",
    ]


def one_stage_code(
    trunk: TrunkConfig, settings: RetinaNetConfig | FCOSConfig, sizes: tuple[int, int], classes: int, file: str
) -> list[str]:
    """RetinaNet or FCOS with `classes`; images have `sizes`, shorter and longest side, px."""
    into_p6, anchors, norm = str(trunk.fpn_channels), [], "norm" if trunk.fpn_norm else "None"
    if isinstance(settings, RetinaNetConfig):
        into_p6 = "widths[-1]"
        anchors = [f"    anchor_generator=AnchorGenerator({settings.octave_sizes}, ((0.5, 1.0, 2.0),) * 5),"]
    return [
        "from torchvision.models.detection import FCOS, RetinaNet",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.ops.feature_pyramid_network import LastLevelP6P7",
        *_start(trunk),
        'levels = {"layer2": "0", "layer3": "1", "layer4": "2"}',
        "widths = [model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"extra = LastLevelP6P7({into_p6}, {trunk.fpn_channels})",
        f"backbone = BackboneWithFPN(model, levels, widths, {trunk.fpn_channels}, extra, {norm})",
        f"model = {CLASSES[type(settings)]}(",
        "    backbone,",
        f"    {classes},",
        *anchors,
        f"    score_thresh={settings.score_threshold},",
        f"    detections_per_img={settings.detections},",
        *(f"    {option}," for option in _sizes(trunk, sizes)),
        ")",
        f'model.load_state_dict(load_file("{file}"))',
    ]


def _sizes(trunk: TrunkConfig, sizes: tuple[int, int]) -> list[str]:
    return [
        f"image_mean={list(trunk.mean)}",
        f"image_std={list(trunk.std)}",
        f"min_size={sizes[0]}",
        f"max_size={sizes[1]}",
    ]


def _parts(trunk: TrunkConfig) -> list[str]:
    """Lines that build `backbone` and `box_head`."""
    width, head = trunk.fpn_channels, trunk.box_head_width
    pyramid_norm = "norm" if trunk.fpn_norm else "None"
    box_head = {
        "4conv1fc": f"FastRCNNConvFCHead(({width}, 7, 7), [{width}] * 4, [{head}], norm)",
        "2fc": f"TwoMLPHead({width} * 49, {head})",
    }
    return [
        "from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead",
        "from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor",
        "from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor",
        *_start(trunk),
        'levels = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}',
        "widths = [model.inplanes // 8, model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"backbone = BackboneWithFPN(model, levels, widths, {width}, norm_layer={pyramid_norm})",
        f"box_head = {box_head[trunk.box_head]}",
    ]


_POOLING = (
    "# boxless pools with half-pixel alignment (Detectron2's ROIAlignV2) and torchvision without. For the very same",
    "# numbers add box_roi_pool=RoIPool() (and, with keypoints, keypoint_roi_pool=RoIPool(14)), after",
    "# `from boxless.detectors.trunk import RoIPool`.",
)


def pretrained_code(trunk: TrunkConfig, file: str) -> list[str]:
    """A Faster R-CNN with the pretrained parts of a trunk."""
    return [
        *_parts(trunk),
        "classes = 91  # yours, background included",
        *_POOLING,
        f"box_predictor = FastRCNNPredictor({trunk.box_head_width}, classes)",
        "model = FasterRCNN(backbone, box_head=box_head, box_predictor=box_predictor)",
        f'missing, unexpected = model.load_state_dict(load_file("{file}"), strict=False)',
        "assert not unexpected",
    ]


def detector_code(
    trunk: TrunkConfig, settings: FasterRCNNConfig, sizes: tuple[int, int], classes: int, keypoints: int, file: str
) -> list[str]:
    """The constructor with what differs from torchvision's defaults at test; sizes of training are left out."""
    width = trunk.fpn_channels
    proposals = max(settings.rpn_proposals // 2, settings.detections)
    options = [
        f"rpn_anchor_generator=AnchorGenerator({tuple((s,) for s in settings.anchor_sizes)}, ((0.5, 1.0, 2.0),) * 5)",
        f"rpn_pre_nms_top_n_test={proposals}",
        f"rpn_post_nms_top_n_test={proposals}",
        "box_head=box_head",
        f"box_predictor=FastRCNNPredictor({trunk.box_head_width}, {classes})",
        f"box_score_thresh={settings.score_threshold}",
        f"box_detections_per_img={settings.detections}",
        *_sizes(trunk, sizes),
    ]
    if isinstance(settings, KeypointRCNNConfig):
        options += [
            f"keypoint_head=KeypointRCNNHeads({width}, ({2 * width},) * 8)",
            f"keypoint_predictor=KeypointRCNNPredictor({2 * width}, {keypoints})",
        ]
    if isinstance(settings, MaskRCNNConfig):
        options += [
            f"mask_head=MaskRCNNHeads({width}, ({width},) * 4, 1{', norm' if settings.mask_norm else ''})",
            f"mask_predictor=MaskRCNNPredictor({width}, {width}, {classes})",
        ]
    return [
        *_parts(trunk),
        *_POOLING,
        f"model = {CLASSES[type(settings)]}(",
        "    backbone,",
        *(f"    {option}," for option in options),
        ")",
        f'model.load_state_dict(load_file("{file}"))',
    ]
