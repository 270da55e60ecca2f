"""The lines of Python that build torchvision's models as boxless has them, and load weights into them.

Nothing in them needs boxless: pooling with half-pixel alignment and resizing with antialiasing, which torchvision's
detectors lack, are written out.
"""

from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import FasterRCNNConfig, KeypointRCNNConfig, MaskRCNNConfig
from boxless.interop.exported import OPENED, Exported, names

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


def backbone_code(export: Exported) -> list[str]:
    """A classifier's body with weights."""
    return [
        *_start(export.trunk),
        f"model.{HEADS.get(export.trunk.backbone, 'fc')} = torch.nn.Identity()  # a detector's body has no classifier",
        f"model.load_state_dict(load_file({export.file!r}))",
        "model.eval()",
    ]


def _start(trunk: TrunkConfig) -> list[str]:
    return [
        "from safetensors.torch import load_file",
        "",
        f"norm = {_NORMS[trunk.norm]}",
        f"model = torchvision.models.{trunk.backbone}({'' if trunk.backbone == 'swin_t' else 'norm_layer=norm'})",
    ]


def one_stage_code(export: Exported) -> list[str]:
    """RetinaNet or FCOS."""
    trunk, settings = export.trunk, export.detector
    assert isinstance(settings, RetinaNetConfig | FCOSConfig)
    into_p6, anchors, norm = str(trunk.fpn_channels), [], "norm" if trunk.fpn_norm else "None"
    if isinstance(settings, RetinaNetConfig):
        into_p6 = "widths[-1]"
        anchors = [f"    anchor_generator=AnchorGenerator({settings.octave_sizes}, ((0.5, 1.0, 2.0),) * 5),"]
    return [
        "from torchvision.models.detection import FCOS, RetinaNet",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.ops.feature_pyramid_network import LastLevelP6P7",
        *_TRANSFORM_IMPORTS,
        *_start(trunk),
        'levels = {"layer2": "0", "layer3": "1", "layer4": "2"}',
        "widths = [model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"extra = LastLevelP6P7({into_p6}, {trunk.fpn_channels})",
        f"backbone = BackboneWithFPN(model, levels, widths, {trunk.fpn_channels}, extra, {norm})",
        f"{names(export.classes, background=False)}  # a label is a place in it",
        *_TRANSFORM,
        f"model = {CLASSES[type(settings)]}(",
        "    backbone,",
        "    len(classes),",
        *anchors,
        f"    score_thresh={settings.score_threshold},",
        f"    detections_per_img={settings.detections},",
        ")",
        *_finish(export),
    ]


_TRANSFORM_IMPORTS = (
    "import numpy",
    "from PIL import Image, ImageOps",
    "from torchvision.models.detection.transform import GeneralizedRCNNTransform",
)

_TRANSFORM = (
    "",
    "",
    "class Transform(GeneralizedRCNNTransform):",
    "    # Resizes at test as in training, by Pillow's bilinear filter: it is antialiased, torchvision's own is not.",
    "    def forward(self, images, targets=None):",
    "        return super().forward(images if self.training else [self.small(image) for image in images], targets)",
    "",
    "    def small(self, image):",
    "        pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()",
    "        size = image.shape[:0:-1]",
    "        scale = min(self.min_size[-1] / min(size), self.max_size / max(size))",
    "        size = [max(1, round(side * scale)) for side in size]",
    "        pixels = numpy.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))",
    "        return torch.from_numpy(pixels).permute(2, 0, 1).to(image) / 255",
    "",
    "",
)


def _finish(export: Exported) -> list[str]:
    """Size, colours and weights, and the function that takes an image."""
    trunk, (shorter, longest) = export.trunk, export.sizes
    return [
        f"model.transform = Transform({shorter}, {longest}, {list(trunk.mean)}, {list(trunk.std)})",
        f"model.load_state_dict(load_file({export.file!r}))",
        "model.eval()",
        "",
        "",
        "@torch.no_grad()",
        "def detect(path):  # boxes (px), scores, labels: classes[label] is a name",
        OPENED,
        "    return model([torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255])[0]  # RGB, 0..1",
    ]


def _parts(trunk: TrunkConfig) -> list[str]:
    """Lines that build `backbone`, `box_head` and the pooling."""
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
        "from torchvision.ops import MultiScaleRoIAlign, roi_align",
        *_TRANSFORM_IMPORTS,
        *_start(trunk),
        'levels = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}',
        "widths = [model.inplanes // 8, model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"backbone = BackboneWithFPN(model, levels, widths, {width}, norm_layer={pyramid_norm})",
        f"box_head = {box_head[trunk.box_head]}",
        *_POOLING,
    ]


_POOLING = (
    "",
    "",
    "class AlignedPool(MultiScaleRoIAlign):",
    "    # Aligned to half pixels, as in training (Detectron2's ROIAlignV2); torchvision's own moves boxes.",
    "    def forward(self, x, boxes, image_shapes):",
    "        rois = torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)])",
    "        sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0).prod(1).sqrt()",
    "        levels = (4 + torch.log2(sides / 224 + 1e-6)).floor().clamp(2, 5).long()",
    '        pooled = x["0"].new_zeros(len(rois), x["0"].shape[1], *self.output_size)',
    '        for level, name in enumerate(("0", "1", "2", "3"), 2):',
    "            (at,) = torch.where(levels == level)",
    "            pooled[at] = roi_align(x[name], rois[at], self.output_size, 1 / 2**level, 0, aligned=True)",
    "        return pooled",
    "",
    "",
    'pool = AlignedPool(["0", "1", "2", "3"], 7, 0)',
)


def pretrained_code(export: Exported) -> list[str]:
    """A Faster R-CNN with the pretrained parts of a trunk."""
    trunk = export.trunk
    colours = f"image_mean={list(trunk.mean)}, image_std={list(trunk.std)}"
    return [
        *_parts(trunk),
        "classes = 91  # yours, background included",
        f"box_predictor = FastRCNNPredictor({trunk.box_head_width}, classes)",
        "heads = dict(box_head=box_head, box_predictor=box_predictor, box_roi_pool=pool)",
        f"model = FasterRCNN(backbone, **heads, {colours})",
        f"missing, unexpected = model.load_state_dict(load_file({export.file!r}), strict=False)",
        "assert not unexpected",
    ]


def detector_code(export: Exported) -> list[str]:
    """The constructor with what differs from torchvision's defaults at test; numbers of training are left out."""
    trunk, settings = export.trunk, export.detector
    assert isinstance(settings, FasterRCNNConfig)
    width = trunk.fpn_channels
    proposals = settings.proposals_at_test
    options = [
        f"rpn_anchor_generator=AnchorGenerator({tuple((s,) for s in settings.anchor_sizes)}, ((0.5, 1.0, 2.0),) * 5)",
        f"rpn_pre_nms_top_n_test={proposals}",
        f"rpn_post_nms_top_n_test={proposals}",
        "box_roi_pool=pool",
        "box_head=box_head",
        f"box_predictor=FastRCNNPredictor({trunk.box_head_width}, len(classes))",
        f"box_score_thresh={settings.score_threshold}",
        f"box_detections_per_img={settings.detections}",
    ]
    if isinstance(settings, KeypointRCNNConfig):
        options += [
            'keypoint_roi_pool=AlignedPool(["0", "1", "2", "3"], 14, 0)',
            f"keypoint_head=KeypointRCNNHeads({width}, ({2 * width},) * 8)",
            f"keypoint_predictor=KeypointRCNNPredictor({2 * width}, {export.keypoints})",
        ]
    if isinstance(settings, MaskRCNNConfig):
        options += [
            f"mask_head=MaskRCNNHeads({width}, ({width},) * 4, 1{', norm' if settings.mask_norm else ''})",
            f"mask_predictor=MaskRCNNPredictor({width}, {width}, len(classes))",
        ]
    return [
        *_parts(trunk),
        names(export.classes, background=True),
        *_TRANSFORM,
        f"model = {CLASSES[type(settings)]}(",
        "    backbone,",
        *(f"    {option}," for option in options),
        ")",
        *_finish(export),
    ]
