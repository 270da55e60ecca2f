"""Recognise the layout of a file by its keys, and rename its tensors to torchvision's names.

The prefix of a body's names, and the keys beside it, tell projects apart (their own files were read for it). Released
bodies often have nothing around them: those of Barlow Twins, VICReg, DetCo and DenseCL are then named as torchvision's.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from boxless.errors import UserError
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
_COMPILED = "_orig_mod."
"""Part of names behind torch.compile."""


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

NEIGHBOURS = {
    r"_feature_blocks\.": "VISSL",
    r"(student|teacher)_embedding_model\.wrapped_model\._model\.": "LightlyTrain",
    r"(encoder_q|online_net|encoder)\.0\.": "MMSelfSup",
    r"teacher\.backbone\.": "DINOv2",
    r"base_encoder\.": "MoCo v3",
    r"online_encoder\.net\.": "byol-pytorch",
}
"""Prefixes that tell whose a file is, if its body has torchvision's or timm's names."""

_SECOND = re.compile(r"(^|[._])(student|momentum|encoder_k|key|target)([._]|$)")
"""Words in the prefix of an encoder beside the one that is meant to be used."""

_STEM_AND_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Places in `nn.Sequential(*list(resnet.children())[:-1])`, as Lightly's tutorials have it, and torchvision's names."""


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
    plain = {key.replace(_COMPILED, ""): value for key, value in tensors.items()}
    wrapped = all(key.startswith(_WRAPPED) for key in plain)
    inner, numbered = _without_places(without(plain, _WRAPPED) if wrapped else plain)
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
    prefixes = _prefixes(inner, own)
    if not prefixes or (len(prefixes) > 1 and 2 * sum(_held(inner, prefix, own) for prefix in prefixes) < len(inner)):
        return "", dict(tensors)  # names that some blocks of another network share with the body's own
    best = prefixes[0]
    if len(prefixes) > 1:
        behind = " and ".join(prefixes[:3])
        raise UserError(f"holds several bodies, behind {behind}; keep one with boxless convert --prefix {best}")
    taken = {key: value for key, value in without(inner, best).items() if own.fullmatch(key)}
    whose = next((f"{name}, " for prefix, name in NEIGHBOURS.items() if re.fullmatch(prefix, best)), "")
    whose = "Lightly, " if numbered and not whose else whose
    return f"{whose}a backbone in torchvision's or timm's names ({around}{best}{numbered}*)", taken


def _held(tensors: Tensors, prefix: str, own: re.Pattern[str]) -> int:
    return sum(own.fullmatch(key) is not None for key in without(tensors, prefix))


def _prefixes(tensors: Tensors, own: re.Pattern[str]) -> list[str]:
    """The prefixes behind which most of a body's names are, without those of second encoders if there are others."""
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        counts.update(".".join([*parts[:n], ""]) for n in range(len(parts)) if own.fullmatch(".".join(parts[n:])))
    most = max(counts.values(), default=0)
    found = [prefix for prefix, count in counts.items() if count == most]
    return [prefix for prefix in found if not _SECOND.search(prefix)] or found


def _without_places(tensors: Tensors) -> tuple[Tensors, str]:
    """Tensors with torchvision's names where a ResNet's modules are numbered, and what stands for the number if so."""
    starts = {key.removesuffix("4.0.conv1.weight") for key in tensors if key.endswith("4.0.conv1.weight")}
    starts = {start for start in starts if {f"{start}0.weight", f"{start}1.weight"} <= tensors.keys()}
    if not starts:
        return tensors, ""

    def name(key: str) -> str:
        start = next((start for start in starts if key.startswith(start)), None)
        place, dot, rest = ("", "", "") if start is None else key.removeprefix(start).partition(".")
        return f"{start}{_STEM_AND_LAYERS[place]}{dot}{rest}" if place in _STEM_AND_LAYERS else key

    return {name(key): value for key, value in tensors.items()}, "N."
