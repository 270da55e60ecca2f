"""Weights in and out of a trunk, with a report of what was really loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from boxless.detectors.backbones import BACKBONES, TimmBody
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.files import written
from boxless.interop.efficientnet import efficientnet_in
from boxless.interop.files import read_tensors
from boxless.interop.layouts import recognise
from boxless.interop.names import Tensors

_LEVEL = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.)(\d)(\..+)")
_PYRAMIDS = {"backbone.fpn.inner_blocks.0.0.bias", "backbone.fpn.inner_blocks.0.1.weight"}
"""A name in pyramids without norms and one in those with norms."""
_OLD_LEVEL = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)")  # before torchvision 0.13


WHOLE = 0.99
"""Least share that is asked for from which on no tensor of a part may be missing."""


@dataclass(frozen=True)
class WeightsReport:
    """Result of loading weights.

    Attributes:
        origin: the file.
        loaded: tensors of the trunk that the file gave.
        total: tensors of the trunk.
        shares: part of the trunk -> share of its parameters that were loaded, 0..1.
        parameter_share: share of all the trunk's parameters that were loaded, 0..1.
        unused: keys of the file that the trunk has no place for.
        mismatched: (key, shape in the file, shape in the trunk).
        recognised: whose names the file has; empty if they are boxless' own.
        words: part -> what was loaded, in words, if its share does not say it.
        notes: lines on what was not loaded, and why.
    """

    origin: str
    loaded: int
    total: int
    shares: Mapping[str, float]
    parameter_share: float
    unused: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    recognised: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [
            f"{part} {self.words.get(part) or ('ok' if share == 1 else 'new' if share == 0 else f'{share:.0%} loaded')}"
            for part, share in self.shares.items()
        ]
        text = f"recognised: {self.recognised}\n" if self.recognised else ""
        share = self.parameter_share if self.parameter_share == 1 else min(self.parameter_share, 0.999)
        text += f"weights: {self.loaded} of {self.total} tensors, {share:.1%} of parameters; "
        text += ", ".join(words) + f" (from {self.origin})"
        for key, given, wanted in self.mismatched[:5]:
            text += f"\n  {key}: shape {given} in the file, {wanted} in the trunk"
        text += "".join(f"\n  {note}" for note in self.notes)
        if self.unused:
            text += f"\n  {len(self.unused)} tensors of the file have no place here, such as {self.unused[0]}"
        return text


def save_trunk(path: Path, trunk: Trunk, parts: tuple[str, ...]) -> None:
    """Write the named parts of a trunk as safetensors, with torchvision's names; atomically."""
    wanted = {id(tensor) for part in parts for tensor in trunk.parts[part].state_dict(keep_vars=True).values()}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in trunk.state_dict(keep_vars=True).items()
        if id(tensor) in wanted
    }
    with written(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "boxless.parts": ",".join(parts)})


def parts_in(path: Path) -> set[str]:
    """The parts of a trunk, by the names of `Trunk.parts`, that weights of a run hold.

    A fine-tuned detector's file names none: it holds all that its trunk has.
    """
    with safe_open(path, framework="pt") as file:
        named = (file.metadata() or {}).get("boxless.parts")
    return set(named.split(",")) if named else {"backbone", "FPN", "hybrid encoder", "RoI head", "transformer"}


def load_trunk(trunk: Trunk, path: Path, minimum: float) -> WeightsReport:
    """Load a file's tensors for this trunk and report what was loaded.

    Files of boxless runs, torchvision, timm, Detectron2, MMDetection and transformers and those of the self-supervised
    methods' authors are recognised by their keys; see `layouts`.

    Args:
        trunk: is changed in place.
        path: path of the weights.
        minimum: share of the backbone's parameters, 0..1, that must be loaded.

    Raises:
        UserError: if less than `minimum` of the backbone was loaded, a part only partly or with another shape or
            without the statistics of its norms, or the file is of a larger backbone, or of one with batch norms where
            the trunk has group norms, or holds NaN; the trunk is then unchanged.
    """
    content = read_tensors(path)
    says, tensors = named_as_trunk(content, trunk, path)
    tensors, adapted = adapted_to(trunk, tensors)
    own = trunk.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and own[key].shape == value.shape}
    mismatched = tuple(
        (key, tuple(value.shape), tuple(own[key].shape))
        for key, value in tensors.items()
        if key in own and own[key].shape != value.shape
    )
    parts = _placed_parts(trunk)
    report = WeightsReport(
        origin=str(path),
        loaded=len(fitting),
        total=len(own),
        shares={part: _share(module, name, fitting) for part, (name, module) in parts.items()},
        parameter_share=_share(trunk, "", fitting),
        unused=tuple(key for key in tensors if key not in own),
        mismatched=mismatched,
        recognised=says,
        notes=(*adapted, *_pyramid_notes(tensors, trunk)),
    )
    _check_whole(report, trunk, content, fitting, minimum)
    _check_network(report, trunk, content)
    check_finite(fitting, path)
    trunk.load_state_dict(fitting, strict=False)
    return report


def _check_whole(report: WeightsReport, trunk: Trunk, content: Tensors, fitting: Tensors, minimum: float) -> None:
    """Refuse a file of which a part would be loaded only partly: a stem is less than a hundredth of a network."""
    path = Path(report.origin)
    for part, (prefix, module) in _placed_parts(trunk).items():
        share = report.shares[part]
        own = [prefix + key for key in module.state_dict() if "num_batches" not in key]
        lacking = [key for key in own if key not in fitting]
        misshapen = [key for key, _, _ in report.mismatched if key in own]
        whole = not lacking if minimum >= WHOLE else share >= minimum
        if (whole and not misshapen) or (part != "backbone" and not share and not misshapen):
            continue
        statistics = [key for key in lacking if key.endswith(("running_mean", "running_var"))]
        if not misshapen and len(statistics) == len(lacking):
            raise UserError(
                f"{path}: has the scales of the {part}'s norms and not their statistics ({statistics[0]}): save the "
                "whole state_dict() and not its parameters alone, or set trunk.norm to group if its norms are group "
                "norms"
            )
        names = ""
        if part == "backbone" and not share:
            names = f"; its names are like {next(iter(content))}, expected like {_example(trunk)}"
        elif lacking:
            names = f"; such as {(misshapen or lacking)[0]}, {'of another shape' if misshapen else 'not in the file'}"
        asked = "all of it is asked for" if minimum >= WHOLE else f"{minimum:.0%} are asked for"
        fix = "choose the trunk that the file is of" + ("" if misshapen else ", or lower min_loaded of finetune")
        raise UserError(
            f"{path}: only {min(share, 0.999):.1%} of the {part} would be loaded, {asked} "
            f"(trunk: {trunk.config.backbone}, FPN {trunk.config.fpn_channels}){names}"
            f"{_fitting_backbone(content, path)}; {fix}\n{report}"
        )


def _check_network(report: WeightsReport, trunk: Trunk, content: Tensors) -> None:
    """Refuse a file of a larger network, or of one with other norms."""
    path = Path(report.origin)
    # A smaller ResNet is part of a larger one, tensor by tensor, and yet another network.
    body, dropped = _network(trunk), getattr(trunk.backbone.body, "left_out", ())
    stages = [key for key in report.unused if key.startswith((body, "box_head.layer")) and key.endswith(".weight")]
    larger = [key for key in stages if key.removeprefix(body) not in dropped]
    if larger:
        raise UserError(
            f"{path}: is of a larger backbone than trunk.backbone={trunk.config.backbone}, with {larger[0]} and "
            f"{len(larger) - 1} more tensors; choose the trunk that the file is of{_fitting_backbone(content, path)}"
        )
    # The scales of batch norms fit group norms, tensor by tensor, and yet count on statistics that these do not have.
    statistics = [key for key in report.unused if key.startswith(body) and key.endswith("running_mean")]
    if trunk.config.norm == "group" and statistics:
        raise UserError(
            f"{path}: is of a backbone with batch norms ({statistics[0]}), which trunk.norm=group cannot take over; "
            "set trunk.norm to batch, sync or frozen, or give weights that were trained with group norms"
        )


def check_finite(tensors: Tensors, path: Path) -> None:
    """Refuse weights of a training that has diverged.

    Raises:
        UserError: naming a tensor with NaN or infinite numbers.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{path}: {key} has {count} of {value.numel()} numbers that are NaN or infinite; take an earlier "
                "checkpoint of that training"
            )


def adapted_to(trunk: Trunk, tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """Tensors in a trunk's names that fit with a known change, and lines that say so.

    A first convolution of one channel is spread over three, as timm does (each a third of it), and a plain ViT's
    positions are resampled.
    """
    own, result, lines = trunk.state_dict(), dict(tensors), []
    for key, value in tensors.items():
        wanted = own[key].shape if key in own else value.shape
        if value.shape == wanted:
            continue
        if len(wanted) == 4 and wanted[1] == 3 and value.shape == (wanted[0], 1, *wanted[2:]):
            result[key] = (value / 3).expand(wanted).contiguous()
            lines.append(f"{key}: of one channel in the file, spread over three, a third each")
        elif key.endswith(".pos_embed") and isinstance(trunk.backbone.body, TimmBody):
            resampled = trunk.backbone.body.positions(value)
            if resampled is not None and resampled.shape == wanted:
                result[key] = resampled
                lines.append(f"{key}: {value.shape[1]} positions in the file, resampled to {wanted[1]}")
    return result, tuple(lines)


def _placed_parts(trunk: Trunk) -> dict[str, tuple[str, nn.Module]]:
    names = {id(module): name for name, module in trunk.named_modules()}
    return {part: (names[id(module)] + ".", module) for part, module in trunk.parts.items()}


def _network(trunk: Trunk) -> str:
    """Prefix of the body's names in torchvision's or timm's own files."""
    return "backbone.body.model." if isinstance(trunk.backbone.body, TimmBody) else "backbone.body."


def _example(trunk: Trunk) -> str:
    names = (key.removeprefix(_network(trunk)) for key in trunk.state_dict())
    return next(name for name in names if name.endswith(".weight"))


def _share(module: nn.Module, prefix: str, fitting: Tensors) -> float:
    # Buffers count as well: frozen norms keep everything in buffers, and running statistics matter as weights do.
    sizes: dict[str, int] = {
        prefix + key: value.numel() for key, value in module.state_dict().items() if "num_batches" not in key
    }
    loaded: int = sum(size for key, size in sizes.items() if key in fitting)
    return loaded / sum(sizes.values())


def named_as_trunk(tensors: Tensors, trunk: Trunk, path: Path) -> tuple[str, Tensors]:
    """The layout of a file, for people, and its tensors in the trunk's names."""
    body = _network(trunk)
    heads = {key.removeprefix(body).partition(".")[0] for key in trunk.state_dict() if key.startswith(body)}
    heads |= {"layer4"} if trunk.config.neck == "c4" else set()
    normalization = _efficientnet_in(tensors, trunk, path)
    try:
        says, found = recognise(tensors, "|".join(map(re.escape, sorted(heads))))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    named = {_in_trunk(key, body, heads): value for key, value in found.items()}
    # A pyramid without norms, whose convolutions have biases instead, is another one than with norms.
    theirs, ours = (_PYRAMIDS & names.keys() for names in (named, trunk.state_dict()))
    if theirs and ours and theirs != ours:
        named = {_as_another(key): value for key, value in named.items()}
    return says + normalization, _last_stage_placed(_levels_placed(named, trunk), trunk)


def _efficientnet_in(tensors: Tensors, trunk: Trunk, path: Path) -> str:
    """The mean and std that go with a file of an EfficientNet, for people; "" for other files.

    Raises:
        UserError: if the trunk is another one. timm's `efficientnet_*` has the same shapes and another padding.
    """
    found, config = efficientnet_in(tensors), trunk.config
    if found is None:
        return ""
    if config.backbone.partition(".")[0] != found.backbone:
        raise UserError(
            f"{path}: is of {found.backbone} and trunk.backbone is {config.backbone}; leave that key out, or set "
            f"--trunk.backbone {found.backbone}"
        )
    same = (tuple(config.mean), tuple(config.std)) == (found.mean, found.std)
    now = "" if same else f", and not with trunk.mean {_in_words(config.mean)}, trunk.std {_in_words(config.std)}"
    return f", trained with mean {_in_words(found.mean)} and std {_in_words(found.std)}{now}"


def _in_words(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else " ".join(f"{value:g}" for value in values)


def _in_trunk(key: str, body: str, heads: set[str]) -> str:
    """A key that `recognise` gives: of a bare body, a trunk or a detector, whose box head lies in its RoI heads."""
    if key.partition(".")[0] in heads:
        return body + key
    if key.startswith("backbone.body.") and not key.startswith(body):
        return body + key.removeprefix("backbone.body.")
    key = _OLD_LEVEL.sub(r"\1.0.\2", key)
    return key.removeprefix("roi_heads.") if "box_head" in key else key


def _pyramid_notes(tensors: Tensors, trunk: Trunk) -> tuple[str, ...]:
    if not any(key.startswith("other.backbone.fpn.") for key in tensors):
        return ()
    theirs, needed = ("with", "true") if trunk.config.fpn_norm is False else ("without", "false")
    return (f"FPN: the file's is {theirs} norms, so this one is new; --trunk.fpn_norm {needed} loads it",)


def trunk_as_in(config: TrunkConfig, path: Path) -> TrunkConfig:
    """A trunk whose pyramid and box head are built as those of the detector that a file is of.

    Args:
        config: the trunk; its backbone, necks other than pyramids, and what the file does not show stay.
        path: path of the weights.
    """
    if config.neck not in ("fpn", "fpn_p3"):
        return config
    content = read_tensors(path)
    if not any("fpn" in key or "neck." in key for key in content):  # of no detector with a pyramid
        return config
    with torch.device("meta"):
        trunk = Trunk(config)
    _, named = named_as_trunk(content, trunk, path)
    tensors = {key.removeprefix("other."): value for key, value in named.items()}
    found: dict[str, Any] = {}
    lateral = tensors.get("backbone.fpn.inner_blocks.0.0.weight")
    if lateral is not None:
        normed = "backbone.fpn.inner_blocks.0.1.weight" in tensors
        found = {"fpn_channels": len(lateral), "fpn_norm": normed}
    for head, layer in (("2fc", "box_head.fc6.weight"), ("4conv1fc", "box_head.5.weight")):
        if config.neck == "fpn" and layer in tensors:
            found |= {"box_head": head, "box_head_width": len(tensors[layer])}
    return replace(config, **found)


def _fitting_backbone(tensors: Tensors, path: Path) -> str:
    """A hint that names torchvision's backbone which a file is of; "" if it is of none."""
    if efficientnet_in(tensors) is not None:  # which the trunk has, or it was refused already
        return ""
    for backbone in BACKBONES:
        with torch.device("meta"):
            trunk = Trunk(TrunkConfig(backbone, neck="none"))
        _, named = named_as_trunk(tensors, trunk, path)
        own = {key: value.shape for key, value in trunk.state_dict().items() if "num_batches" not in key}
        body = {k: v.shape for k, v in named.items() if k.startswith("backbone.body.") and k.endswith(".weight")}
        if body.keys() <= own.keys() and all(key in named and named[key].shape == own[key] for key in own):
            return f"; the file fits --trunk.backbone {backbone}"
    return ""


def _as_another(key: str) -> str:
    return f"other.{key}" if key.startswith(("backbone.fpn.inner_", "backbone.fpn.layer_")) else key


def _levels_placed(tensors: Tensors, trunk: Trunk) -> Tensors:
    """A pyramid's numbers begin with its first level, P2 or P3, whichever the file's and the trunk's begin with."""
    count = len({match[2] for key in tensors if (match := _LEVEL.fullmatch(key))})
    shift = {"fpn": 4, "fpn_p3": 3}.get(trunk.config.neck, count) - count
    if not count or not shift:
        return tensors

    def name(key: str) -> str:
        match = _LEVEL.fullmatch(key)
        if match is None:
            return key
        number = int(match[2]) + shift
        return f"{match[1]}{number if number >= 0 else 'p2'}{match[3]}"

    return {name(key): value for key, value in tensors.items()}


def _last_stage_placed(tensors: Tensors, trunk: Trunk) -> Tensors:
    """A ResNet's last stage belongs to the body, and in a C4 trunk to the box head, whichever the file has it in."""
    body, head = "backbone.body.layer4.", "box_head.layer4."
    old, new = (body, head) if trunk.config.neck == "c4" else (head, body)
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in tensors.items()}
