"""EfficientNets in the names of lukemelas' efficientnet_pytorch, which convert TensorFlow's; timm has them as tf_*.

The paddings are TensorFlow's (more at the right and bottom at stride 2) and the norms have an eps of 1e-3, which names
do not show: the same tensors in timm's own `efficientnet_*` load and give other features.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from boxless.interop.names import Tensors, without

_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_PREFIXES = ("", "module.", "model.", "backbone.")
_SIZES = {352: 2, 384: 3, 448: 4, 512: 5, 576: 6, 640: 7}
"""Width of the last block -> the number in the model's name; 0 and 1 share 320."""


class EfficientNet(NamedTuple):
    """A body that a file in these names is of.

    Attributes:
        backbone: as `trunk.backbone` has it.
        mean: mean of RGB in 0..1 that it was trained with.
        std: standard deviation, likewise.
    """

    backbone: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def efficientnet_in(tensors: Mapping[str, Tensor]) -> EfficientNet | None:
    """The EfficientNet that tensors in these names are of; None if they are in others, or of none that timm has."""
    own = _own(tensors)
    widths = _widths(own)
    if "_conv_stem.weight" not in own or not widths:
        return None
    number = _SIZES.get(widths[-1], None if widths[-1] != 320 else int(len(widths) > 16))
    if number is None:
        return None
    if any("._se_reduce." in key for key in own):
        return EfficientNet(f"timm:tf_efficientnet_b{number}", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return EfficientNet(f"timm:tf_efficientnet_lite{number}", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def recognised(tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
    """See `layouts.Project`: the names of the stem and the blocks."""
    found = efficientnet_in(tensors)
    return found and (f"EfficientNet in lukemelas' names ({around}_blocks.*), {found.backbone}", to_timm(tensors))


def to_timm(tensors: Mapping[str, Tensor]) -> Tensors:
    """The body's tensors in timm's names; the classifier is left out."""
    own = _own(tensors)
    places = _places(_widths(own))
    renamed = {}
    for key, value in own.items():
        match = _BLOCK.fullmatch(key)
        if match is None:
            module, _, leaf = key.rpartition(".")
            name = _STEM.get(module)
        else:
            number, module, leaf = int(match[1]), match[2], match[3]
            expands = f"_blocks.{number}._expand_conv.weight" in own
            part = (_WITH_EXPANSION if expands else _WITHOUT_EXPANSION).get(module)
            name = None if part is None or number >= len(places) else f"blocks.{places[number]}.{part}"
        if name is not None:
            renamed[f"{name}.{leaf}"] = value
    return renamed


def _own(tensors: Mapping[str, Tensor]) -> Tensors:
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}_conv_stem.weight" in tensors), "")
    return without(tensors, prefix)


def _widths(own: Mapping[str, Tensor]) -> list[int]:
    """Channels that each block puts out, in order."""
    widths: list[int] = []
    while (weight := own.get(f"_blocks.{len(widths)}._project_conv.weight")) is not None:
        widths.append(len(weight))
    return widths


def _places(widths: list[int]) -> list[str]:
    """timm's stage and number of each block: every stage of an EfficientNet has a width of its own."""
    stages = list(dict.fromkeys(widths))
    return [f"{stages.index(width)}.{number - widths.index(width)}" for number, width in enumerate(widths)]
