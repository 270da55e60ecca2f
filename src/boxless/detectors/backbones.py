"""A detector's body: the maps C2..C5 of images, by torchvision's ResNets and MobileNetV2, Swin-T, or any timm model.

Every body gives a dict "0" to "3" of maps (B, C, h, w) at strides 4, 8, 16 and 32, and says the `widths` C of them and
its `stages`, five steps of modules that cover every parameter once: the stem, then what ends in each map.
"""

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d
from torchvision.models import mobilenet_v2, resnet
from torchvision.models._utils import IntermediateLayerGetter

from boxless.detectors.norms import Norm, convert_norms, norm_layer
from boxless.detectors.swin import SwinBody
from boxless.errors import UserError

LEVELS = ("0", "1", "2", "3")
"""torchvision's names of P2..P5 (and of C2..C5)."""

STRIDES = (4, 8, 16, 32)
"""Strides of these maps, px."""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "mobilenet_v2", "swin_t")
"""Names of torchvision's bodies; timm's are `timm:NAME`."""


def check_backbone(name: str) -> None:
    """Refuse a backbone that is none of torchvision's here and not written as one of timm's.

    Raises:
        UserError: naming those near it.
    """
    if name not in BACKBONES and not name.startswith("timm:"):
        near = get_close_matches(name, BACKBONES, 2, 0.6)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else f": is it timm's, 'timm:{name}'?"
        raise UserError(
            f"trunk.backbone: unknown {name!r}{hint} expected {', '.join(BACKBONES)}, or timm:NAME for a model of timm"
        )


class ResNetBody(IntermediateLayerGetter):  # type: ignore[misc]
    """torchvision's ResNet without its classifier, or without its last stage too (`last=3`: C4 alone, named "0")."""

    def __init__(self, network: resnet.ResNet, last: int = 4) -> None:
        maps = {f"layer{number}": name for number, name in enumerate(LEVELS, 1)} if last == 4 else {"layer3": "0"}
        super().__init__(network, maps)
        width = network.inplanes
        self.widths = (width // 8, width // 4, width // 2, width) if last == 4 else (width // 2,)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """Stem, then layer1 to the last one."""
        return [[self["conv1"], self["bn1"]], *([self[name]] for name in self if name.startswith("layer"))]


class MobileNetBody(nn.Module):
    """torchvision's MobileNetV2 (Sandler et al., 2018) without its classifier.

    C2..C4 are the last maps of their stride, 24, 32 and 96 channels; C5 is the last convolution, 1280 channels, as in
    MMDetection's FPN on it: a classifier's file then fills the whole body, and methods learn what it classified from.
    Self-EMD, which pretrains it, does not say which maps it takes.
    """

    widths = (24, 32, 96, 1280)
    _ends = (3, 6, 13, 18)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.features: nn.Sequential = mobilenet_v2(weights=None, norm_layer=norm_layer(norm)).features

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """C2..C5 of images (B, 3, H, W)."""
        maps = []
        for number, step in enumerate(self.features):
            image = step(image)
            if number in self._ends:
                maps.append(image)
        return dict(zip(LEVELS, maps, strict=True))

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The two blocks of stride 2, then those that end in each map."""
        bounds = (0, 2, *(end + 1 for end in self._ends))
        return [list(self.features)[a:b] for a, b in pairwise(bounds)]


class TimmBody(nn.Module):
    """A model of timm without its classifier, in its names under `model`, without stochastic depth.

    The last map is normed where the model has a norm for it. A plain ViT has one stride, 16: its last map, normed, is
    "0", "1" and "2", and max-pooled "3"; the neck brings the first two to their strides (`SimplePyramid`), with new
    layers, which are none of the body's. Its positions are resampled to the image. Where a model takes only multiples
    of 4, 16 or 32 px, other images are enlarged to the next one, so that its maps cover them exactly.

    Args:
        name: timm's, such as convnext_tiny.
        norm: norm that replaces batch norms; layer norms stay.

    Attributes:
        plain: true if it is a plain ViT.
        left_out: names of the classifier's tensors that the body does without.

    Raises:
        UserError: if timm is missing or has no such model, or the model has other strides, or fixed sizes.
    """

    def __init__(self, name: str, norm: Norm) -> None:
        super().__init__()
        self.model = _timm_model(name)
        info = list(self.model.feature_info)
        strides = [entry["reduction"] for entry in info]
        self.plain = set(strides) == {16}
        if not self.plain and not set(STRIDES) <= set(strides):
            raise UserError(
                f"trunk.backbone: timm:{name} has maps at strides {', '.join(map(str, dict.fromkeys(strides)))}; "
                "expected 4, 8, 16 and 32, or a plain ViT with patches of 16 px"
            )
        last = {stride: number for number, stride in enumerate(strides)}
        self._taken = [last[stride] for stride in ((16,) if self.plain else STRIDES)]
        self._ends = [info[number]["module"] for number in self._taken]
        every = set(self.model.state_dict())
        self.model.prune_intermediate_layers(self._taken, prune_norm=False, prune_head=True)
        self.left_out = every - set(self.model.state_dict())
        convert_norms(self.model, norm, f"timm:{name}")
        self._multiple, self.widths = self._tried(name)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """C2..C5 of images (B, 3, H, W); see the class for a plain ViT's."""
        size = [-(-side // self._multiple) * self._multiple for side in image.shape[-2:]]
        if list(image.shape[-2:]) != size:
            image = interpolate(image, size, mode="bilinear", align_corners=False)
        maps: list[Tensor] = self.model.forward_intermediates(
            image, indices=self._taken, norm=True, intermediates_only=True
        )
        if self.plain:
            maps = [*maps * 3, max_pool2d(maps[0], 2, ceil_mode=True)]
        return dict(zip(LEVELS, maps, strict=True))

    def positions(self, given: Tensor) -> Tensor | None:
        """Learned positions of another grid, (1, N, C), resampled to the model's; None if they are of no square grid.

        The tokens before them, if any, stay.
        """
        from timm.layers.pos_embed import resample_abs_pos_embed

        model = self.model
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        first = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
        if grid is None or given.ndim != 3 or math.isqrt(given.shape[1] - first) ** 2 != given.shape[1] - first:
            return None
        resampled: Tensor = resample_abs_pos_embed(given, list(grid), num_prefix_tokens=first)
        return resampled

    @torch.no_grad()
    def _tried(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Divisor of the images' sides, px, and the widths of the maps, measured on an image of odd size."""
        self.eval()
        for multiple in (16,) if self.plain else (1, 4, 16, 32):
            self._multiple = multiple
            try:
                maps = self(torch.zeros(1, 3, 75, 107))
                break
            except (AssertionError, RuntimeError, ValueError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
        else:
            raise UserError(f"trunk.backbone: timm:{name} does not take images of any size ({reason})")
        self.train()
        side = -(-75 // multiple) * multiple
        for stride, value in zip((16, 16, 16, 32) if self.plain else STRIDES, maps.values(), strict=True):
            if not side // stride <= value.shape[2] <= -(-side // stride):
                raise UserError(f"trunk.backbone: timm:{name} does not give maps at strides 4, 8, 16 and 32")
        return multiple, tuple(value.shape[1] for value in maps.values())

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The stem, then what ends in each map; of a plain ViT the quarters of its blocks."""
        first, ends = self._ends[0], self._ends
        if self.plain:
            blocks = len(self.model.get_submodule("blocks"))
            first, ends = "blocks.0", [f"blocks.{blocks * quarter // 4 - 1}" for quarter in (1, 2, 3, 4)]
        stages: list[list[nn.Module]] = [[], [], [], [], []]
        number = 0
        for name, unit in _units(self.model, (first, *ends)):
            number = 1 if name == first else number
            stages[number].append(unit)
            if name in ends[:3]:
                number = ends.index(name) + 2
        return stages


Body = ResNetBody | MobileNetBody | SwinBody | TimmBody


def build_body(name: str, norm: Norm) -> Body:
    """The body of a name that `check_backbone` lets pass, with random weights.

    Raises:
        UserError: for a model that timm does not have or that cannot be a body.
    """
    body = _build(name, norm)
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]
    return body


@cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """The kind in float32 on CPUs: gradients of depthwise convolutions take 3 to 5 times longer in bfloat16."""

    def forward(self: nn.Conv2d, image: Tensor) -> Tensor:
        if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return kind.forward(self, image)
        with torch.autocast("cpu", enabled=False):
            return kind.forward(self, image.float())

    return type(kind.__name__, (kind,), {"forward": forward})


def _build(name: str, norm: Norm) -> Body:
    if name.startswith("timm:"):
        return TimmBody(name.removeprefix("timm:"), norm)
    if name == "mobilenet_v2":
        return MobileNetBody(norm)
    return SwinBody() if name == "swin_t" else ResNetBody(build_resnet(name, norm))


def build_resnet(name: str, norm: Norm) -> resnet.ResNet:
    """torchvision's ResNet with random weights.

    Zeroed last gammas make each residual block start as the identity, as in SoCo's, Barlow's and VICReg's code.
    """
    build = getattr(resnet, name)
    network: resnet.ResNet = build(weights=None, norm_layer=norm_layer(norm), zero_init_residual=norm != "frozen")
    return network


def _timm_model(name: str) -> Any:
    """timm's model with random weights, for images of any size where it can be."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"trunk.backbone: timm:{name} needs timm; install it with pip install 'boxless[timm]'"
        ) from None
    if not timm.is_model(name):
        names = timm.list_models()
        near = get_close_matches(name, names, 3, 0.6) or timm.list_models(f"*{name.partition('_')[0]}*")[:3]
        hint = f": did you mean {' or '.join(f'timm:{each}' for each in near)}?" if near else ""
        raise UserError(f"trunk.backbone: timm has no model {name!r}{hint or ': timm.list_models() lists them'}")
    of_any_size: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
    for option in of_any_size:
        try:
            return timm.create_model(name, pretrained=False, **option)
        except TypeError:  # a model without the option takes images of any size
            continue
    return timm.create_model(name, pretrained=False)


def _units(module: nn.Module, ends: Sequence[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules in their order, as coarse as the ends allow, with parameters that lie beside them."""
    beside = list(module.parameters(recurse=False))
    if beside:
        yield prefix, nn.ParameterList(beside)
    for name, child in module.named_children():
        path = prefix + name
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _units(child, ends, f"{path}.")
        else:
            yield path, child
