"""MMDetection 3's names of ResNets, pyramids and two-stage detectors, of RetinaNet, and its file.

Its ResNets have torchvision's names but for group norms, and its anchors torchvision's order (`scale_major`). Where its
pyramid has norms, P6 and P7 of RetinaNet have them too; boxless' have biases instead, and get norms that only add them.
"""

import io
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from boxless.detectors.detector import DetectorConfig
from boxless.detectors.one_stage import RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import C4_BEFORE_NMS, FasterRCNNConfig, MaskRCNNConfig
from boxless.interop.exported import Exported, names
from boxless.interop.names import Tensors, background_first, background_last, renamed, resnet_modules

CONFIGS: dict[type[DetectorConfig], tuple[str, str]] = {
    FasterRCNNConfig: ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco"),
    MaskRCNNConfig: ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", "mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco"),
    RetinaNetConfig: ("retinanet/retinanet_r50_fpn_1x_coco", ""),
}
"""The detectors that can be exported whole, and MMDetection's settings of them on a pyramid and on C4."""
EPSILON = 1e-5
"""Epsilon of batch norms, there and here."""


def from_torchvision(tensors: Mapping[str, Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """A body, a trunk or a detector in torchvision's names: its tensors in MMDetection's, and the keys left out.

    Args:
        tensors: names begin with backbone.body.
    """
    grouped = not any(key.endswith("running_mean") for key in tensors)
    normed = "backbone.fpn.inner_blocks.0.1.weight" in tensors
    given = _with_norms(tensors) if normed else tensors
    return renamed(background_last(given), _table(_laterals(tensors, "backbone.fpn.inner_blocks."), grouped))


def to_torchvision(tensors: Mapping[str, Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """The way back."""
    laterals = _laterals(tensors, "neck.lateral_convs.")
    back = {theirs: ours for grouped in (True, False) for ours, theirs in _table(laterals, grouped).items()}
    convolutional = any("shared_convs.0." in key for key in tensors)
    back["roi_head.bbox_head.shared_fcs.0"] = "roi_heads.box_head.5" if convolutional else "roi_heads.box_head.fc6"
    found, left = renamed(tensors, back)
    return background_first(_without_norms(found)), left


def recognised(tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
    """See `layouts.Project`; SoCo's authors took their pyramid and its names from MMDetection."""
    if "neck.lateral_convs.0.conv.weight" in tensors and "encoder.conv1.weight" in tensors:
        return f"SoCo ({around}encoder.*, {around}neck.*, {around}head.*)", to_torchvision(_soco(tensors))[0]
    if not any(key.startswith(("neck.lateral_convs.", "rpn_head.", "roi_head.", "bbox_head.")) for key in tensors):
        return None
    found, _ = to_torchvision(tensors)
    return (f"MMDetection ({around}backbone.*; right for style='pytorch' and RGB)", found) if found else None


def _soco(tensors: Tensors) -> Tensors:
    """SoCo's names as those of MMDetection, from which its pyramid was taken."""

    def name(key: str) -> str:
        if key.startswith("encoder."):
            return "backbone." + key.removeprefix("encoder.")
        head = re.fullmatch(r"head\.(conv|bn|fc)(\d)\.(\w+)", key)
        if head is None:
            return key
        place = "shared_fcs.0" if head[1] == "fc" else f"shared_convs.{int(head[2]) - 1}.{head[1]}"
        return f"roi_head.bbox_head.{place}.{head[3]}"

    return {name(key): value for key, value in tensors.items()}


def saved(tensors: Tensors, classes: Sequence[str]) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    torch.save({"meta": {"dataset_meta": {"classes": tuple(classes)}}, "state_dict": tensors}, buffer)
    return buffer.getvalue()


def how_to_load(export: Exported) -> str:
    """The lines of Python that load the file there and, of a whole detector, find objects in an image."""
    trunk, detector = export.trunk, export.detector
    single, retinanet = trunk.neck == "c4", trunk.neck == "fpn_p3"
    config = CONFIGS[type(detector) if detector else RetinaNetConfig if retinanet else FasterRCNNConfig][single]
    return "\n".join(
        [
            "import torch",
            "from mmdet.apis import inference_detector, init_detector",
            "from mmengine.hub import get_config",
            *(_EXTRA_NORM if single and detector is not None else ("",)),
            f'cfg = get_config("mmdet::{config}.py")',
            *_body_settings(export),
            *(_heads(export) if detector is None or retinanet or not single else []),
            *(_detector_settings(export) if detector is not None else []),
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            f"model = init_detector(cfg, {export.file!r}, device=device)",
            *(_detect(export) if detector is not None else []),
        ]
    )


_EXTRA_NORM = (
    "from mmdet.models.roi_heads.shared_heads import ResLayer",
    "from mmdet.registry import MODELS",
    "from mmcv.cnn import build_norm_layer",
    "",
    "",
    "@MODELS.register_module(force=True)",
    "class ResLayerExtraNorm(ResLayer):  # MMSelfSup's, for MoCo",
    "    def __init__(self, *args, **kwargs):",
    "        super().__init__(*args, **kwargs)",
    '        self.add_module("norm", build_norm_layer(self.norm_cfg, 2048)[1])',
    "",
    "    def forward(self, x):",
    "        return self.norm(super().forward(x))",
    "",
    "",
)


def how_to_load_body(export: Exported) -> str:
    """The lines of Python that start a detector from a file with a body alone."""
    trunk = export.trunk
    basic = trunk.backbone in ("resnet18", "resnet34")
    start = f"init_cfg=dict(type='Pretrained', checkpoint={export.file!r}, prefix='backbone.')"
    return "\n".join(
        [
            "from mmdet.registry import MODELS",
            "from mmdet.utils import register_all_modules",
            "from mmengine.hub import get_config",
            "",
            "register_all_modules()",
            'cfg = get_config("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")  # or any other on a ResNet',
            *_body_settings(export, start),
            *(["model.neck.in_channels = [64, 128, 256, 512]"] if basic else []),
            "model = MODELS.build(model)",
            "model.init_weights()  # on C4 give roi_head.shared_head the same init_cfg, for its layer4",
        ]
    )


def _body_settings(export: Exported, start: str = "init_cfg=None") -> list[str]:
    """Settings of a body: its norms learn and its stages stay as they did in training."""
    trunk, (mean, std) = export.trunk, export.pixels
    return [
        "model = cfg.model",
        f"model.data_preprocessor.update(mean={mean}, std={std}, bgr_to_rgb=True)",
        f"model.backbone.update(depth={trunk.backbone.removeprefix('resnet')}, {_norms(trunk)}, style='pytorch',",
        f"    frozen_stages={export.frozen - 1}, {start})",
    ]


def _norms(trunk: TrunkConfig) -> str:
    return f"norm_cfg={_norm(trunk)}, norm_eval={trunk.norm == 'frozen'}"


def _norm(trunk: TrunkConfig) -> str:
    kind = {"batch": "BN", "sync": "SyncBN", "frozen": "BN", "group": "GN"}[trunk.norm]
    more = {"group": ", num_groups=32", "frozen": ", requires_grad=False"}.get(trunk.norm, "")
    return f"dict(type={kind!r}{more})"


def _heads(export: Exported) -> list[str]:
    """Widths and norms of pyramid and heads."""
    trunk, width = export.trunk, export.trunk.fpn_channels
    depth, retinanet = int(trunk.backbone.removeprefix("resnet")), trunk.neck == "fpn_p3"
    widths = [64 * 2**stage * (1 if depth < 50 else 4) for stage in range(4)]
    extra = ", add_extra_convs='on_input', relu_before_extra_convs=True" if retinanet else ""
    norm = f"norm_cfg={_norm(trunk) if trunk.fpn_norm else None}{extra}"
    lines = [f"model.neck.update(in_channels={widths}, out_channels={width}, {norm})"]
    if retinanet:
        return [*lines, f"model.bbox_head.update(in_channels={width}, feat_channels={width})"]
    lines += [
        f"model.rpn_head.update(in_channels={width}, feat_channels={width})",
        f"model.roi_head.bbox_roi_extractor.out_channels = {width}",
    ]
    sizes = f"in_channels={width}, fc_out_channels={trunk.box_head_width}"
    if trunk.box_head == "2fc":
        return [*lines, f"model.roi_head.bbox_head.update({sizes})"]
    return [
        *lines,
        "model.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead',",
        f"    conv_out_channels={width}, norm_cfg={_norm(trunk)}, {sizes})",
    ]


def _detector_settings(export: Exported) -> list[str]:
    """Classes, and all that holds at test."""
    trunk, detector, (shorter, longest) = export.trunk, export.detector, export.sizes
    assert isinstance(detector, RetinaNetConfig | FasterRCNNConfig)
    kept = f"score_thr={detector.score_threshold}, nms=dict(type='nms', iou_threshold=0.5)"
    kept += f", max_per_img={detector.detections}"
    settings = [
        "pipeline = cfg.test_dataloader.dataset.pipeline",
        "pipeline[0].imdecode_backend = 'pillow'",
        f"pipeline[1].update(scale=({longest}, {shorter}), backend='pillow')  # longest and shorter side, px",
    ]
    if isinstance(detector, RetinaNetConfig):
        return [
            *settings,
            f"model.bbox_head.num_classes = {len(export.classes)}",
            f"model.test_cfg.update(nms_pre=1000, min_bbox_size=0, {kept})",
        ]
    single, proposals = trunk.neck == "c4", detector.proposals_at_test
    before = proposals * (C4_BEFORE_NMS if single else 1)
    settings += [
        f"model.test_cfg.rpn.update(nms_pre={before}, max_per_img={proposals},",
        "    nms=dict(type='nms', iou_threshold=0.7))",
        f"model.test_cfg.rcnn.update({kept})",
        f"model.roi_head.bbox_head.num_classes = {len(export.classes)}",
    ]
    if single:
        depth = trunk.backbone.removeprefix("resnet")
        shared = f"depth={depth}, {_norms(trunk)}, style='pytorch', init_cfg=None"
        settings += [
            f"model.roi_head.shared_head.update(type='ResLayerExtraNorm', {shared})",
            f"model.rpn_head.anchor_generator.scales = {[size / 16 for size in detector.anchor_sizes]}",
        ]
    return [*settings, *(_mask_settings(export) if isinstance(detector, MaskRCNNConfig) else [])]


def _mask_settings(export: Exported) -> list[str]:
    trunk, detector = export.trunk, export.detector
    assert isinstance(detector, MaskRCNNConfig)
    lines = [f"model.roi_head.mask_head.num_classes = {len(export.classes)}"]
    if trunk.neck != "c4":
        width = trunk.fpn_channels
        pool = "roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2, aligned=False)  # as torchvision's"
        lines += [
            f"model.roi_head.mask_roi_extractor.update(out_channels={width},",
            f"    {pool.replace(')  #', '))  #')}",
            f"model.roi_head.mask_head.update(in_channels={width}, conv_out_channels={width})",
        ]
    return lines + ([f"model.roi_head.mask_head.norm_cfg = {_norm(trunk)}"] if detector.mask_norm else [])


def _detect(export: Exported) -> list[str]:
    detector = export.detector
    assert isinstance(detector, RetinaNetConfig | FasterRCNNConfig)
    head = "bbox_head" if isinstance(detector, RetinaNetConfig) else "rpn_head"
    masks = ', "masks": found.masks' if isinstance(detector, MaskRCNNConfig) else ""
    if isinstance(detector, RetinaNetConfig):
        sizes = [list(sides) for sides in detector.octave_sizes]
    else:
        sides = detector.anchor_sizes
        sizes = [list(sides)] if export.trunk.neck == "c4" else [[side] for side in sides]
    return [
        f"anchors = model.{head}.prior_generator",
        "anchors.base_anchors = [  # of whole pixels, as torchvision has them",
        "    anchors.gen_single_level_base_anchors(1, torch.tensor(sides), anchors.ratios).round()",
        f"    for sides in {sizes}",
        "]",
        names(export.classes, background=False),
        "",
        "",
        "def detect(path):  # boxes (px), scores, labels: classes[label] is a name",
        '    found = inference_detector(model, path).pred_instances.to("cpu")',
        f'    return {{"boxes": found.bboxes, "scores": found.scores, "labels": found.labels{masks}}}',
    ]


def _laterals(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in tensors if key.startswith(prefix)})


def _body(name: str, grouped: bool) -> str:
    head, _, last = name.rpartition(".")
    last = last.replace("bn", "gn") if grouped else last
    return f"{head}.{last}" if head else last


def _table(laterals: int, grouped: bool) -> dict[str, str]:
    """torchvision's modules of a trunk or a detector, and MMDetection's."""
    norm = "gn" if grouped else "bn"
    bodies = resnet_modules()
    table = {f"backbone.body.{name}": f"backbone.{_body(name, grouped)}" for name in bodies}
    table |= {
        f"roi_heads.box_head.{name}": f"roi_head.shared_head.{_body(name, grouped)}"
        for name in bodies
        if name.startswith("layer4.")
    }
    pairs = [("backbone.fpn.inner_blocks", "neck.lateral_convs", laterals)]
    pairs += [("backbone.fpn.layer_blocks", "neck.fpn_convs", laterals)]
    pairs += [("roi_heads.box_head", "roi_head.bbox_head.shared_convs", 4)]
    pairs += [("roi_heads.mask_head", "roi_head.mask_head.convs", 4)]
    pairs += [(f"head.{ours}_head.conv", f"bbox_head.{theirs}_convs", 4) for ours, theirs in _SUBNETS]
    for ours, theirs, count in pairs:
        for number in range(count):
            table[f"{ours}.{number}.0"] = f"{theirs}.{number}.conv"
            table[f"{ours}.{number}.1"] = f"{theirs}.{number}.{norm}"
    for number, level in enumerate(("p6", "p7"), laterals):
        table[f"backbone.fpn.extra_blocks.{level}"] = f"neck.fpn_convs.{number}.conv"
        table[f"backbone.fpn.extra_blocks.{level}.norm"] = f"neck.fpn_convs.{number}.{norm}"
    return table | _HEADS


_SUBNETS = (("classification", "cls"), ("regression", "reg"))

_HEADS = {
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "roi_heads.box_head.norm": "roi_head.shared_head.norm",
    "roi_heads.box_head.5": "roi_head.bbox_head.shared_fcs.0",  # behind four convolutions
    "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
    "roi_heads.mask_predictor.conv5_mask": "roi_head.mask_head.upsample",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_head.mask_head.conv_logits",
    "head.classification_head.cls_logits": "bbox_head.retina_cls",
    "head.regression_head.bbox_reg": "bbox_head.retina_reg",
}

_EXTRA = "backbone.fpn.extra_blocks."


def _with_norms(tensors: Mapping[str, Tensor]) -> Tensors:
    """P6's and P7's biases as those of norms that do nothing else."""
    result = dict(tensors)
    for key in [key for key in tensors if key.startswith(_EXTRA) and key.endswith(".bias")]:
        bias, norm = result.pop(key), key.replace(".bias", ".norm.")
        result[norm + "weight"] = torch.full_like(bias, 1 + EPSILON).sqrt()
        result[norm + "bias"] = bias
        result[norm + "running_mean"] = torch.zeros_like(bias)
        result[norm + "running_var"] = torch.ones_like(bias)
        result[norm + "num_batches_tracked"] = torch.tensor(0)
    return result


def _without_norms(tensors: Mapping[str, Tensor]) -> Tensors:
    """The way back: norms behind P6 and P7, as running statistics make them, taken into the convolutions."""
    result = {key: value for key, value in tensors.items() if not (key.startswith(_EXTRA) and ".norm." in key)}
    for level in ("p6", "p7"):
        if f"{_EXTRA}{level}.norm.running_var" in tensors:
            scale, shift, mean, variance = (
                tensors[f"{_EXTRA}{level}.norm.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale / (variance + EPSILON).sqrt()
            result[f"{_EXTRA}{level}.weight"] = result[f"{_EXTRA}{level}.weight"] * factor[:, None, None, None]
            result[f"{_EXTRA}{level}.bias"] = shift - mean * factor
    return result
