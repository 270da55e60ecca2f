"""Whose names a file has, found out by its keys, and its tensors in torchvision's.

What stands before a body's names, and what else lies beside it, tells projects apart (their own files were read for
it). Released bodies often have nothing around them: those of Barlow Twins, VICReg, DetCo and DenseCL are then named as
torchvision's own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from boxless.errors import UserError
from boxless.interop import detectron2, mmdetection, transformers
from boxless.interop.detr import from_authors
from boxless.interop.names import Tensors, without

_WRAPPED = "module."
"""Prefix of DataParallel, before every name."""


@dataclass(frozen=True)
class Layout:
    """Layout of a project's names for a body.

    Attributes:
        name: name of the project.
        prefix: before the body's names.
        beside: pattern that another of the file's keys matches.
    """

    name: str
    prefix: str
    beside: str


LAYOUTS = (
    Layout("MoCo v2", "encoder_q.", r"encoder_q\.fc\.2\..*"),
    Layout("MoCo", "encoder_q.", r"encoder_q\.fc\..*|queue"),
    Layout("DenseCL", "backbone.", r"queue2"),
    Layout("SwAV", "", r"(prototypes|projection_head)\..*"),
    Layout("DINO", "backbone.", r"(module\.)?head\.(last_layer|mlp)\..*"),
    Layout("Barlow Twins", "backbone.", r"bn\.running_mean"),
    Layout("VICReg", "backbone.", r"projector\..*"),
    Layout("PixPro", "encoder.", r"projector\.linear1\..*"),
    Layout("UP-DETR", "backbone.0.body.", r"patch2query\..*"),
    Layout("DETR", "backbone.0.body.", r"(query_embed|class_embed)\..*"),
)
"""Layouts in order; if several fit, the first one is used."""

# Of whatever else: DataParallel around a backbone, detectors, Lightning's and Hugging Face's classes around timm's
# models. The longest match wins.
_PREFIXES = ("", "backbone.", "backbone.body.", "encoder.", "model.", "resnet.", "timm_model.")
_OTHERS = (*_PREFIXES, "model.backbone.conv_encoder.model.", "backbone.0.body.", "base_encoder.")


@dataclass(frozen=True)
class Recognised:
    """Layout that was recognised in a file.

    Attributes:
        says: whose names it has and which part was taken, for people; empty where they are boxless' own.
        tensors: in torchvision's names: of a bare body (conv1, layer1 ...), or of a trunk or detector (backbone.body.).
    """

    says: str
    tensors: Tensors


def recognise(tensors: Mapping[str, Tensor], body: str) -> Recognised:
    """Whose names tensors have, and they in torchvision's.

    Args:
        tensors: tensors of a file.
        body: pattern of the names that the wanted body's tensors begin with, such as conv1|bn1|layer1.

    Raises:
        UserError: for weights that would load and be wrong.
    """
    wrapped = all(key.startswith(_WRAPPED) for key in tensors)
    inner = without(tensors, _WRAPPED) if wrapped else dict(tensors)
    around = _WRAPPED if wrapped else ""
    own = re.compile(rf"({body})(\..+)?")
    if any(key.startswith("backbone.body.") for key in inner):
        whole = any(key.startswith(("rpn.", "roi_heads.", "head.")) for key in inner)
        return Recognised(f"a detector in torchvision's names ({around}backbone.body.*)" if whole else "", inner)
    found = _of_detectors(inner, around)
    if found is not None:
        return found
    for layout in LAYOUTS:
        taken = without(inner, layout.prefix)
        if any(re.fullmatch(layout.beside, key) for key in inner) and any(own.fullmatch(key) for key in taken):
            more = from_authors(inner) if layout.name in ("DETR", "UP-DETR") else {}
            body_only = {key: value for key, value in taken.items() if own.fullmatch(key)}
            if more:
                body_only = {f"backbone.body.{key}": value for key, value in body_only.items()} | more
            return Recognised(f"{layout.name} ({around}{layout.prefix}*)", body_only)
    best = max(_OTHERS, key=lambda prefix: sum(bool(own.fullmatch(key)) for key in without(inner, prefix)))
    taken = {key: value for key, value in without(inner, best).items() if own.fullmatch(key)}
    if not taken:
        return Recognised("", dict(tensors))
    return Recognised(f"a backbone in torchvision's or timm's names ({around}{best}*)", taken)


def _of_detectors(tensors: Tensors, around: str) -> Recognised | None:
    """Recognise Detectron2, MMDetection, SoCo (named like MMDetection) and Hugging Face."""
    if any(re.fullmatch(r"(res_?)?conv1_w|res2_0_branch2a_w", key) for key in tensors):
        raise UserError(
            "the names are Caffe2's (conv1_w, res2_0_branch2a_w): MSRA's ResNet in Detectron2's first files, which has "
            "the stride in the 1x1 convolution and takes BGR; use a file in torchvision's names"
        )
    if any(key.endswith("stem.conv1.weight") for key in tensors):
        if detectron2.is_in_bgr(tensors):
            raise UserError(
                "the file's pixel_mean begins with blue, so it is one of Detectron2's own models, of MSRA's ResNet: it "
                "takes BGR and has the stride in the 1x1 convolution; use a file that was trained on RGB"
            )
        found, _ = detectron2.to_torchvision(tensors)
        where = next(key for key in tensors if key.endswith("stem.conv1.weight")).removesuffix("stem.conv1.weight")
        warning = "right where it was trained on RGB with STRIDE_IN_1X1 False, which names do not show"
        return Recognised(f"Detectron2 ({around}{where}res2.*; {warning})", found)
    if "neck.lateral_convs.0.conv.weight" in tensors and "encoder.conv1.weight" in tensors:
        found, _ = mmdetection.to_torchvision(_soco(tensors))
        return Recognised(f"SoCo ({around}encoder.*, {around}neck.*, {around}head.*)", found)
    if any(key.startswith(("neck.lateral_convs.", "rpn_head.", "roi_head.", "bbox_head.")) for key in tensors):
        found, _ = mmdetection.to_torchvision(tensors)
        if found:
            return Recognised(f"MMDetection ({around}backbone.*; right for style='pytorch' and RGB)", found)
    if transformers.is_layout(tensors):
        return Recognised(
            "Hugging Face transformers (embedder.*, encoder.stages.*)", transformers.to_torchvision(tensors)
        )
    return None


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
