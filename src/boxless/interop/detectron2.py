"""Detectron2's names of ResNets, pyramids and two-stage detectors, of RetinaNet, and its file.

Its loader takes a pickle {"model": {name: array}, "__author__": ..., "matching_heuristics": True}: without an author
it would take the names for Caffe2's. The heuristic gives a tensor to every module whose name ends in the tensor's, so a
bare body ("res2.0.conv1.weight") fills C4 detectors and pyramids alike.

Both libraries' anchors of a place go through sizes and ratios, torchvision's through sizes fastest, Detectron2's
through ratios (`generate_cell_anchors`): the rows that predict them are reordered where a place has several sizes.
"""

import io
import pickle
import re
from collections.abc import Mapping

from torch import Tensor

from boxless.detectors.detector import DetectorConfig
from boxless.detectors.one_stage import RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import C4_BEFORE_NMS, FasterRCNNConfig, KeypointRCNNConfig, MaskRCNNConfig
from boxless.errors import UserError
from boxless.interop.exported import OPENED, Exported, names
from boxless.interop.names import Tensors, background_first, background_last, renamed, resnet_modules

RATIOS = 3
"""Number of aspect ratios of anchors, in all of boxless' detectors."""
CONFIGS: dict[type[DetectorConfig], str] = {
    FasterRCNNConfig: "COCO-Detection/faster_rcnn",
    MaskRCNNConfig: "COCO-InstanceSegmentation/mask_rcnn",
    KeypointRCNNConfig: "COCO-Keypoints/keypoint_rcnn",
    RetinaNetConfig: "COCO-Detection/retinanet",
}
"""Detectors that can be exported whole, with the beginning of their names in Detectron2's model zoo."""
BODIES = ("", "backbone.bottom_up.", "backbone.", "roi_heads.")
"""Optional prefixes of a module's name."""


def from_torchvision(tensors: Mapping[str, Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """A body, a trunk or a detector in torchvision's names: its tensors in Detectron2's, and the keys left out.

    Args:
        tensors: names begin with backbone.body., or with conv1 and layer1 where they are of a bare body.
    """
    if not any(key.startswith("backbone.") for key in tensors):
        return renamed(tensors, {name: _body(name) for name in resnet_modules()})
    first = 3 if "backbone.fpn.inner_blocks.3.0.weight" not in tensors else 2
    single = not any(key.startswith("backbone.fpn.") for key in tensors)
    return renamed(_reordered(background_last(tensors), to_detectron=True), _table(first, single))


def to_torchvision(tensors: Mapping[str, Tensor]) -> tuple[Tensors, tuple[str, ...]]:
    """The way back; names may lack their beginnings, as in files that were made for the heuristic."""
    first = 2 if any("fpn_lateral2." in key for key in tensors) else 3
    back = {theirs: ours for single in (True, False) for ours, theirs in _table(first, single).items()}
    convolutional = any("box_head.conv1." in key for key in tensors)
    back["roi_heads.box_head.fc1"] = "roi_heads.box_head.5" if convolutional else "roi_heads.box_head.fc6"
    names = {key: key.rpartition(".")[0] for key in tensors}
    full = {
        key: next((begin + key for begin in BODIES if begin + module in back), key) for key, module in names.items()
    }
    found, left = renamed({full[key]: value for key, value in tensors.items()}, back)
    return background_first(_reordered(found, to_detectron=False)), left


def recognised(tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
    """See `layouts.Project`."""
    if any(re.fullmatch(r"(res_?)?conv1_w|res2_0_branch2a_w", key) for key in tensors):
        raise UserError(
            "the names are Caffe2's (conv1_w, res2_0_branch2a_w): MSRA's ResNet in Detectron2's first files, which has "
            "the stride in the 1x1 convolution and takes BGR; use a file in torchvision's names"
        )
    stem = next((key for key in tensors if key.endswith("stem.conv1.weight")), None)
    if stem is None:
        return None
    if _is_in_bgr(tensors):
        raise UserError(
            "the file's pixel_mean begins with blue, so it is one of Detectron2's own models, of MSRA's ResNet: it "
            "takes BGR and has the stride in the 1x1 convolution; use a file that was trained on RGB"
        )
    where = stem.removesuffix("stem.conv1.weight")
    warning = "right where it was trained on RGB with STRIDE_IN_1X1 False, which names do not show"
    return f"Detectron2 ({around}{where}res2.*; {warning})", to_torchvision(tensors)[0]


def _is_in_bgr(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file that says its colours' mean has blue first, as Detectron2's own (MSRA's) weights have."""
    mean = tensors.get("pixel_mean")
    return mean is not None and bool(mean.flatten()[0] < mean.flatten()[-1])


def pickled(tensors: Tensors) -> bytes:
    """The file's content."""
    arrays = {key: value.numpy() for key, value in tensors.items()}
    buffer = io.BytesIO()
    pickle.dump({"model": arrays, "__author__": "boxless", "matching_heuristics": True}, buffer)
    return buffer.getvalue()


def how_to_load(export: Exported) -> str:
    """The lines of Python that load the file there and, of a whole detector, find objects in an image."""
    trunk, detector = export.trunk, export.detector
    retinanet = isinstance(detector, RetinaNetConfig) or trunk.neck == "fpn_p3"
    zoo = CONFIGS[type(detector) if detector else RetinaNetConfig if retinanet else FasterRCNNConfig]
    name = "C4" if trunk.neck == "c4" else "FPN"
    extra = trunk.neck == "c4" and detector is not None
    imports = _DETECT_IMPORTS if detector else _LOAD_IMPORTS
    ending = _detect(export, retinanet) if detector else _load(export)
    return "\n".join(
        [
            *imports,
            *(_EXTRA_NORM if extra else ("",)),
            f'cfg = model_zoo.get_config("{zoo}_R_50_{name}_1x.yaml")',
            'cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"',
            *_body_settings(export),
            *(_detector_settings(export) if detector else []),
            *ending,
        ]
    )


_LOAD_IMPORTS = (
    "import torch",
    "from detectron2 import model_zoo",
    "from detectron2.checkpoint import DetectionCheckpointer",
    "from detectron2.modeling import build_model",
)
_DETECT_IMPORTS = (
    "import numpy",
    "import torch",
    "from detectron2 import model_zoo",
    "from detectron2.engine import DefaultPredictor",
    "from PIL import Image, ImageOps",
)
_EXTRA_NORM = (
    "from detectron2.layers import get_norm",
    "from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads",
    "",
    "",
    "@ROI_HEADS_REGISTRY.register()",
    "class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # MoCo's",
    "    @classmethod",
    "    def _build_res5_block(cls, cfg):",
    "        block, channels = super()._build_res5_block(cfg)",
    '        block.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))',
    "        return block, channels",
    "",
    "",
)


def _load(export: Exported) -> list[str]:
    return ["model = build_model(cfg)", f"DetectionCheckpointer(model).load({export.file!r})"]


def _detect(export: Exported, retinanet: bool) -> list[str]:
    more = ', "masks": found.pred_masks' if isinstance(export.detector, MaskRCNNConfig) else ""
    more = ', "keypoints": found.pred_keypoints' if isinstance(export.detector, KeypointRCNNConfig) else more
    single = export.trunk.neck == "c4"
    generator = "anchor_generator" if retinanet else "proposal_generator.anchor_generator"
    return [
        f"cfg.MODEL.WEIGHTS = {export.file!r}",
        "predictor = DefaultPredictor(cfg)",
        "model = predictor.model",
        f"for anchors in model.{generator}.cell_anchors:",
        "    anchors.round_()  # whole pixels, as torchvision has them",
        *(["type(model.backbone).size_divisibility = 32  # images are padded as in training"] if single else []),
        names(export.classes, background=False),
        "",
        "",
        "def detect(path):  # boxes (px), scores, labels: classes[label] is a name",
        OPENED,
        '    found = predictor(numpy.asarray(image)[:, :, ::-1])["instances"].to("cpu")  # it takes BGR',
        "    boxes, scores, labels = found.pred_boxes.tensor, found.scores, found.pred_classes",
        f'    return {{"boxes": boxes, "scores": scores, "labels": labels{more}}}',
    ]


def _norm(trunk: TrunkConfig) -> str:
    return {"batch": "BN", "sync": "SyncBN", "frozen": "FrozenBN", "group": "GN"}[trunk.norm]


def _body_settings(export: Exported) -> list[str]:
    """Settings of a body, its pyramid and box head, and of the images that they were trained on."""
    trunk = export.trunk
    depth, norm, (mean, std) = int(trunk.backbone.removeprefix("resnet")), _norm(trunk), export.pixels
    settings = [
        f"BACKBONE.FREEZE_AT = {export.frozen}",
        f"RESNETS.DEPTH = {depth}",
        *(["RESNETS.RES2_OUT_CHANNELS = 64"] if depth < 50 else []),
        "RESNETS.STRIDE_IN_1X1 = False  # torchvision's stride: with True it would load too, and be wrong",
        f'RESNETS.NORM = "{norm}"',
        f"PIXEL_MEAN = {mean}  # RGB, 0..255",
        f"PIXEL_STD = {std}",
    ]
    if trunk.neck in ("fpn", "fpn_p3"):
        settings += [f'FPN.NORM = "{norm if trunk.fpn_norm else ""}"', f"FPN.OUT_CHANNELS = {trunk.fpn_channels}"]
    if trunk.neck == "fpn":
        convolutions, linear = (4, 1) if trunk.box_head == "4conv1fc" else (0, 2)
        settings += [
            f"ROI_BOX_HEAD.NUM_CONV = {convolutions}",
            f"ROI_BOX_HEAD.CONV_DIM = {trunk.fpn_channels}",
            f"ROI_BOX_HEAD.NUM_FC = {linear}",
            f"ROI_BOX_HEAD.FC_DIM = {trunk.box_head_width}",
            f'ROI_BOX_HEAD.NORM = "{norm}"',
        ]
    return ['cfg.INPUT.FORMAT = "RGB"', *(f"cfg.MODEL.{setting}" for setting in settings)]


def _detector_settings(export: Exported) -> list[str]:
    """Settings of RPN and heads, and all that holds at test."""
    trunk, detector, (shorter, longest) = export.trunk, export.detector, export.sizes
    assert isinstance(detector, RetinaNetConfig | FasterRCNNConfig)
    settings = [
        f"cfg.INPUT.MIN_SIZE_TEST = {shorter}",
        f"cfg.INPUT.MAX_SIZE_TEST = {longest}",
        f"cfg.TEST.DETECTIONS_PER_IMAGE = {detector.detections}",
    ]
    if isinstance(detector, RetinaNetConfig):
        sizes = [list(sides) for sides in detector.octave_sizes]
        model = [
            f"RETINANET.NUM_CLASSES = {len(export.classes)}",
            f"RETINANET.SCORE_THRESH_TEST = {detector.score_threshold}",
            "RETINANET.NMS_THRESH_TEST = 0.5",
            "RETINANET.TOPK_CANDIDATES_TEST = 1000",
            f"ANCHOR_GENERATOR.SIZES = {sizes}",
        ]
        return settings + [f"cfg.MODEL.{setting}" for setting in model]
    single, proposals = trunk.neck == "c4", detector.proposals_at_test
    levels = [list(detector.anchor_sizes)] if single else [[size] for size in detector.anchor_sizes]
    model = [
        f"RPN.PRE_NMS_TOPK_TEST = {proposals * (C4_BEFORE_NMS if single else 1)}",
        f"RPN.POST_NMS_TOPK_TEST = {proposals}",
        "RPN.NMS_THRESH = 0.7",
        f"ROI_HEADS.NUM_CLASSES = {len(export.classes)}",
        f"ROI_HEADS.SCORE_THRESH_TEST = {detector.score_threshold}",
        "ROI_HEADS.NMS_THRESH_TEST = 0.5",
        f"ANCHOR_GENERATOR.SIZES = {levels}",
        *(['ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"'] if single else []),
        *_branch_settings(export),
    ]
    return settings + [f"cfg.MODEL.{setting}" for setting in model]


def _branch_settings(export: Exported) -> list[str]:
    """Settings of masks and keypoints."""
    trunk, detector = export.trunk, export.detector
    settings = []
    if isinstance(detector, MaskRCNNConfig):
        if trunk.neck != "c4":  # masks are pooled as torchvision does it
            settings += [
                f"ROI_MASK_HEAD.CONV_DIM = {trunk.fpn_channels}",
                'ROI_MASK_HEAD.POOLER_TYPE = "ROIAlign"',
                "ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 2",
            ]
        settings += [f'ROI_MASK_HEAD.NORM = "{_norm(trunk)}"'] if detector.mask_norm else []
    if isinstance(detector, KeypointRCNNConfig):
        settings += [
            f"ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = {export.keypoints}",
            f"ROI_KEYPOINT_HEAD.CONV_DIMS = {[2 * trunk.fpn_channels] * 8}",
        ]
    return settings


def _reordered(tensors: Mapping[str, Tensor], to_detectron: bool) -> Tensors:
    """The rows that predict something of a place's anchors, in the order of the other library."""

    def changed(key: str, rows: Tensor) -> Tensor:
        module = key.rpartition(".")[0]
        of_retinanet = module in ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
        per_anchor = {"rpn.head.cls_logits": 1, "rpn.head.bbox_pred": 4}.get(module)
        if per_anchor is None and not of_retinanet:
            return rows
        sizes = 3 if per_anchor is None else len(rows) // (RATIOS * per_anchor)
        slow, fast = (RATIOS, sizes) if to_detectron else (sizes, RATIOS)
        return rows.reshape(slow, fast, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)

    return {key: changed(key, value) for key, value in tensors.items()}


def _body(name: str) -> str:
    """A ResNet's module: layer1.0.bn2 is res2.0.conv2.norm."""
    stage, _, rest = name.partition(".")
    if not rest:
        return {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}[stage]
    block, _, part = rest.partition(".")
    part = part.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    part = f"conv{part[2:]}.norm" if part.startswith("bn") else part
    return f"res{int(stage[-1]) + 1}.{block}.{part}"


def _table(first: int, single: bool) -> dict[str, str]:
    """torchvision's modules of a trunk or a detector, and Detectron2's.

    Args:
        first: level of the pyramid's finest map.
        single: true if there is no pyramid.
    """
    begin = "backbone." if single else "backbone.bottom_up."
    table = {f"backbone.body.{name}": begin + _body(name) for name in resnet_modules()}
    for name in resnet_modules():
        if name.startswith("layer4."):
            theirs = f"roi_heads.{_body(name)}"
            table |= {f"roi_heads.box_head.{name}": theirs}
    table["roi_heads.box_head.norm"] = "roi_heads.res5.norm"
    for number in range(4):
        for ours, theirs in (("inner", "lateral"), ("layer", "output")):
            level = f"backbone.fpn_{theirs}{number + first}"
            table |= {
                f"backbone.fpn.{ours}_blocks.{number}.0": level,
                f"backbone.fpn.{ours}_blocks.{number}.1": f"{level}.norm",
            }
        head = f"roi_heads.box_head.conv{number + 1}"
        table |= {f"roi_heads.box_head.{number}.0": head, f"roi_heads.box_head.{number}.1": f"{head}.norm"}
        mask = f"roi_heads.mask_head.mask_fcn{number + 1}"
        table |= {f"roi_heads.mask_head.{number}.0": mask, f"roi_heads.mask_head.{number}.1": f"{mask}.norm"}
        for ours, theirs in (("classification", "cls"), ("regression", "bbox")):
            table[f"head.{ours}_head.conv.{number}.0"] = f"head.{theirs}_subnet.{2 * number}"
    for number in range(8):
        table[f"roi_heads.keypoint_head.{2 * number}"] = f"roi_heads.keypoint_head.conv_fcn{number + 1}"
    return table | _HEADS


_HEADS = {
    "backbone.fpn.extra_blocks.p6": "backbone.top_block.p6",
    "backbone.fpn.extra_blocks.p7": "backbone.top_block.p7",
    "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_head.5": "roi_heads.box_head.fc1",  # behind four convolutions
    "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
    "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
    "roi_heads.keypoint_predictor.kps_score_lowres": "roi_heads.keypoint_head.score_lowres",
    "head.classification_head.cls_logits": "head.cls_score",
    "head.regression_head.bbox_reg": "head.bbox_pred",
}
