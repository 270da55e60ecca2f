"""Recognise the layout of a file by its keys, and rename its tensors to torchvision's names.

The prefix of a body's names, and the keys beside it, tell projects apart (their own files were read for it). Released
bodies often have nothing around them: those of Barlow Twins, VICReg, DetCo and DenseCL are then named as torchvision's.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from boxless.interop import detectron2, efficientnet, mmdetection, transformers
from boxless.interop.detr import from_authors
from boxless.interop.names import Tensors, without


class Project(Protocol):
    """A module with a project's names of whole detectors."""

    def recognised(self, tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
        """The layout, for people, and the tensors in torchvision's names; None if the names are not the project's.

        Args:
            tensors: tensors of a file, without `around`.
            around: prefix of all their names, perhaps empty.

        Raises:
            UserError: for weights that would load and be wrong.
        """


PROJECTS: tuple[Project, ...] = (detectron2, mmdetection, transformers, efficientnet)
"""Projects in order; the first that recognises a file is used."""

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
    for project in PROJECTS:
        if (found := project.recognised(inner, around)) is not None:
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
