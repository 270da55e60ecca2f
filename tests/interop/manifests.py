"""Names and shapes of detectors in Detectron2 and MMDetection 3, on ResNet-50 with 80 classes, written down from their
code: neither library can be installed here from the registry."""

from collections.abc import Sequence
from itertools import pairwise

Shapes = dict[str, tuple[int, ...]]

CLASSES = 80
KEYPOINTS = 17
STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))
"""Blocks, width inside, width outside."""


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def normed(name: str, normal: str, *shape: int) -> Shapes:
    """A convolution without bias and its norm."""
    return {f"{name}.weight": shape, **norm(normal, shape[0])}


def transposed(name: str, into: int, out: int) -> Shapes:
    return {f"{name}.weight": (into, out, 2, 2), f"{name}.bias": (out,)}


def blocks(prefix: str, stage: int, toolbox: bool) -> Shapes:
    """A stage, 1 to 4, which Detectron2 counts from 2."""
    count, inner, outer = STAGES[stage - 1]
    into = 64 if stage == 1 else STAGES[stage - 2][2]
    shapes: Shapes = {}
    for block in range(count):
        start = f"{prefix}layer{stage}.{block}." if toolbox else f"{prefix}{block}."
        for number, shape in enumerate(((inner, into, 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1)), 1):
            normal = f"bn{number}" if toolbox else f"conv{number}.norm"
            shapes |= normed(f"{start}conv{number}", start + normal, *shape)
        if block == 0:
            names = ("downsample.0", "downsample.1") if toolbox else ("shortcut", "shortcut.norm")
            shapes |= normed(start + names[0], start + names[1], outer, into, 1, 1)
        into = outer
    return shapes


def detectron2_body(prefix: str, last: int = 4) -> Shapes:
    shapes = normed(f"{prefix}stem.conv1", f"{prefix}stem.conv1.norm", 64, 3, 7, 7)
    for stage in range(1, last + 1):
        shapes |= blocks(f"{prefix}res{stage + 1}.", stage, toolbox=False)
    return shapes


def mmdetection_body(last: int = 4) -> Shapes:
    shapes = normed("backbone.conv1", "backbone.bn1", 64, 3, 7, 7)
    for stage in range(1, last + 1):
        shapes |= blocks("backbone.", stage, toolbox=True)
    return shapes


def detectron2_faster(pyramid: int, box: int, linear: int) -> Shapes:
    """Faster R-CNN with SoCo's box head and norms in pyramid and head, of these widths."""
    shapes = detectron2_body("backbone.bottom_up.")
    for level, (_, _, width) in enumerate(STAGES, 2):
        for name, shape in (("lateral", (pyramid, width, 1, 1)), ("output", (pyramid, pyramid, 3, 3))):
            shapes |= normed(f"backbone.fpn_{name}{level}", f"backbone.fpn_{name}{level}.norm", *shape)
    rpn = "proposal_generator.rpn_head."
    shapes |= layer(f"{rpn}conv", pyramid, pyramid, 3, 3) | layer(f"{rpn}objectness_logits", 3, pyramid, 1, 1)
    shapes |= layer(f"{rpn}anchor_deltas", 12, pyramid, 1, 1)
    for number, into in enumerate((pyramid, box, box, box), 1):
        name = f"roi_heads.box_head.conv{number}"
        shapes |= normed(name, f"{name}.norm", box, into, 3, 3)
    shapes |= layer("roi_heads.box_head.fc1", linear, box * 49)
    shapes |= layer("roi_heads.box_predictor.cls_score", CLASSES + 1, linear)
    return shapes | layer("roi_heads.box_predictor.bbox_pred", 4 * CLASSES, linear)


def detectron2_fpn(pyramid: int = 256, box: int = 256, linear: int = 1024, mask: int = 256) -> Shapes:
    """Mask R-CNN with norms in its mask head too."""
    shapes = detectron2_faster(pyramid, box, linear)
    for number, into in enumerate((pyramid, mask, mask, mask), 1):
        name = f"roi_heads.mask_head.mask_fcn{number}"
        shapes |= normed(name, f"{name}.norm", mask, into, 3, 3)
    shapes |= transposed("roi_heads.mask_head.deconv", mask, mask)
    return shapes | layer("roi_heads.mask_head.predictor", CLASSES, mask, 1, 1)


def detectron2_keypoints(pyramid: int, box: int, linear: int, widths: Sequence[int]) -> Shapes:
    shapes = detectron2_faster(pyramid, box, linear)
    for number, (into, width) in enumerate(pairwise((pyramid, *widths)), 1):
        shapes |= layer(f"roi_heads.keypoint_head.conv_fcn{number}", width, into, 3, 3)
    scores = "roi_heads.keypoint_head.score_lowres"
    return shapes | {f"{scores}.weight": (widths[-1], KEYPOINTS, 4, 4), f"{scores}.bias": (KEYPOINTS,)}


def detectron2_c4() -> Shapes:
    """Mask R-CNN with the extra norm of MoCo's and SoCo's transfers."""
    shapes = detectron2_body("backbone.", last=3) | blocks("roi_heads.res5.", 4, toolbox=False)
    shapes |= norm("roi_heads.res5.norm", 2048)
    rpn = "proposal_generator.rpn_head."
    shapes |= layer(f"{rpn}conv", 1024, 1024, 3, 3) | layer(f"{rpn}objectness_logits", 15, 1024, 1, 1)
    shapes |= layer(f"{rpn}anchor_deltas", 60, 1024, 1, 1)
    shapes |= layer("roi_heads.box_predictor.cls_score", CLASSES + 1, 2048)
    shapes |= layer("roi_heads.box_predictor.bbox_pred", 4 * CLASSES, 2048)
    shapes |= transposed("roi_heads.mask_head.deconv", 2048, 256)
    return shapes | layer("roi_heads.mask_head.predictor", CLASSES, 256, 1, 1)


def detectron2_retinanet(pyramid: int = 256) -> Shapes:
    shapes = detectron2_body("backbone.bottom_up.")
    for level, (_, _, width) in list(enumerate(STAGES, 2))[1:]:
        for name, shape in (("lateral", (pyramid, width, 1, 1)), ("output", (pyramid, pyramid, 3, 3))):
            shapes |= normed(f"backbone.fpn_{name}{level}", f"backbone.fpn_{name}{level}.norm", *shape)
    for name, into in (("p6", 2048), ("p7", pyramid)):
        shapes |= layer(f"backbone.top_block.{name}", pyramid, into, 3, 3)
    for number in (0, 2, 4, 6):  # with a ReLU between two
        shapes |= layer(f"head.cls_subnet.{number}", pyramid, pyramid, 3, 3)
        shapes |= layer(f"head.bbox_subnet.{number}", pyramid, pyramid, 3, 3)
    return shapes | layer("head.cls_score", 9 * CLASSES, pyramid, 3, 3) | layer("head.bbox_pred", 36, pyramid, 3, 3)


def mmdetection_fpn(pyramid: int = 256, rpn: int = 256, box: int = 256, linear: int = 1024, mask: int = 256) -> Shapes:
    """Mask R-CNN as that of Detectron2, of these widths."""
    shapes = mmdetection_body()
    for number, (_, _, width) in enumerate(STAGES):
        for name, shape in (("lateral", (pyramid, width, 1, 1)), ("fpn", (pyramid, pyramid, 3, 3))):
            shapes |= normed(f"neck.{name}_convs.{number}.conv", f"neck.{name}_convs.{number}.bn", *shape)
    shapes |= layer("rpn_head.rpn_conv", rpn, pyramid, 3, 3) | layer("rpn_head.rpn_cls", 3, rpn, 1, 1)
    shapes |= layer("rpn_head.rpn_reg", 12, rpn, 1, 1)
    for name, width in (("roi_head.bbox_head.shared_convs", box), ("roi_head.mask_head.convs", mask)):
        for number, into in enumerate((pyramid, width, width, width)):
            shapes |= normed(f"{name}.{number}.conv", f"{name}.{number}.bn", width, into, 3, 3)
    shapes |= layer("roi_head.bbox_head.shared_fcs.0", linear, box * 49)
    shapes |= layer("roi_head.bbox_head.fc_cls", CLASSES + 1, linear)
    shapes |= layer("roi_head.bbox_head.fc_reg", 4 * CLASSES, linear)
    shapes |= transposed("roi_head.mask_head.upsample", mask, mask)
    return shapes | layer("roi_head.mask_head.conv_logits", CLASSES, mask, 1, 1)


def mmdetection_c4() -> Shapes:
    shapes = mmdetection_body(last=3) | blocks("roi_head.shared_head.", 4, toolbox=True)
    shapes |= norm("roi_head.shared_head.norm", 2048)
    shapes |= layer("rpn_head.rpn_conv", 1024, 1024, 3, 3) | layer("rpn_head.rpn_cls", 15, 1024, 1, 1)
    shapes |= layer("rpn_head.rpn_reg", 60, 1024, 1, 1)
    shapes |= layer("roi_head.bbox_head.fc_cls", CLASSES + 1, 2048)
    shapes |= layer("roi_head.bbox_head.fc_reg", 4 * CLASSES, 2048)
    shapes |= transposed("roi_head.mask_head.upsample", 2048, 256)
    return shapes | layer("roi_head.mask_head.conv_logits", CLASSES, 256, 1, 1)


def mmdetection_retinanet(pyramid: int = 256, head: int = 256) -> Shapes:
    shapes = mmdetection_body()
    for number, (_, _, width) in enumerate(STAGES[1:]):
        for name, shape in (("lateral", (pyramid, width, 1, 1)), ("fpn", (pyramid, pyramid, 3, 3))):
            shapes |= normed(f"neck.{name}_convs.{number}.conv", f"neck.{name}_convs.{number}.bn", *shape)
    for number, width in ((3, 2048), (4, pyramid)):  # P6 and P7: their convolutions have norms where the others have
        shapes |= normed(f"neck.fpn_convs.{number}.conv", f"neck.fpn_convs.{number}.bn", pyramid, width, 3, 3)
    for number, into in enumerate((pyramid, head, head, head)):
        for name in ("cls", "reg"):
            shapes |= layer(f"bbox_head.{name}_convs.{number}.conv", head, into, 3, 3)
    shapes |= layer("bbox_head.retina_cls", 9 * CLASSES, head, 3, 3)
    return shapes | layer("bbox_head.retina_reg", 36, head, 3, 3)
