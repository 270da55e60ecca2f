"""Recognise the layout of a file by its keys, and rename its tensors to torchvision's names.

The prefix of a body's names, and the keys beside it, tell projects apart (their own files were read for it). Released
bodies often have nothing around them: those of Barlow Twins, VICReg, DetCo and DenseCL are then named as torchvision's.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from boxless.errors import UserError
from boxless.interop import detectron2, mmdetection, transformers
from boxless.interop.detr import from_authors
from boxless.interop.names import Tensors, without

_WRAPPED = "module."
"""Prefix of DataParallel, before every name."""


class Layout(NamedTuple):
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

_OTHERS = ["", "backbone.", "backbone.body.", "encoder.", "model.", "resnet.", "timm_model."]
_OTHERS += ["model.backbone.conv_encoder.model.", "backbone.0.body.", "base_encoder."]
"""Prefixes elsewhere: DataParallel around a backbone, detectors, Lightning's and Hugging Face's classes around timm's
models. The longest match wins."""


def recognise(tensors: Mapping[str, Tensor], body: str) -> tuple[str, Tensors]:
    """The layout of a file, and its tensors in torchvision's names.

    Args:
        tensors: tensors of a file.
        body: pattern of the names that the wanted body's tensors begin with, such as conv1|bn1|layer1.

    Returns:
        The project and the part that was taken, for people ("" if the names are boxless' own); and the tensors of a
        bare body (conv1, layer1 ...), or of a trunk or detector (backbone.body.).

    Raises:
        UserError: for weights that would load and be wrong.
    """
    wrapped = all(key.startswith(_WRAPPED) for key in tensors)
    inner = without(tensors, _WRAPPED) if wrapped else dict(tensors)
    around = _WRAPPED if wrapped else ""
    own = re.compile(rf"({body})(\..+)?")
    if any(key.startswith("backbone.body.") for key in inner):
        whole = any(key.startswith(("rpn.", "roi_heads.", "head.")) for key in inner)
        return f"a detector in torchvision's names ({around}backbone.body.*)" if whole else "", inner
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
            return f"{layout.name} ({around}{layout.prefix}*)", body_only
    best = max(_OTHERS, key=lambda prefix: sum(bool(own.fullmatch(key)) for key in without(inner, prefix)))
    taken = {key: value for key, value in without(inner, best).items() if own.fullmatch(key)}
    if not taken:
        return "", dict(tensors)
    return f"a backbone in torchvision's or timm's names ({around}{best}*)", taken


def _of_detectors(tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
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
        return f"Detectron2 ({around}{where}res2.*; {warning})", found
    if "neck.lateral_convs.0.conv.weight" in tensors and "encoder.conv1.weight" in tensors:
        found, _ = mmdetection.to_torchvision(_soco(tensors))
        return f"SoCo ({around}encoder.*, {around}neck.*, {around}head.*)", found
    if any(key.startswith(("neck.lateral_convs.", "rpn_head.", "roi_head.", "bbox_head.")) for key in tensors):
        found, _ = mmdetection.to_torchvision(tensors)
        if found:
            return f"MMDetection ({around}backbone.*; right for style='pytorch' and RGB)", found
    if transformers.is_layout(tensors):
        return "Hugging Face transformers (embedder.*, encoder.stages.*)", transformers.to_torchvision(tensors)
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
