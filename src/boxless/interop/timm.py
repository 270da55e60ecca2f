"""timm's names: of its own models as it has them, and of torchvision's ResNets, which it names alike."""

import torch

from boxless.detectors.backbones import RESNETS
from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.interop.exported import Exported
from boxless.interop.names import Tensors, without


def from_torchvision(body: Tensors, trunk: TrunkConfig) -> Tensors:
    """A body, without what stands before its names, in timm's.

    Raises:
        UserError: for one that timm names otherwise.
    """
    if trunk.backbone.startswith("timm:"):
        return without(body, "model.")
    if trunk.backbone not in RESNETS:
        raise UserError(
            f"to: timm has no {trunk.backbone} in torchvision's names; export it with --to torchvision-backbone"
        )
    if trunk.norm != "frozen":
        return body
    counts = {key.replace("running_mean", "num_batches_tracked") for key in body if key.endswith("running_mean")}
    return body | {key: torch.tensor(0) for key in counts}


def how_to_load(export: Exported) -> str:
    """The lines of Python that load the file there."""
    trunk = export.trunk
    name, own = trunk.backbone.removeprefix("timm:"), trunk.backbone.startswith("timm:")
    layer = ", norm_layer=lambda channels, **_: torch.nn.GroupNorm(math.gcd(32, channels), channels)"
    grouped = layer if trunk.norm == "group" and not own else ""
    return "\n".join(
        [
            "import math",
            "import timm, torch",
            "from safetensors.torch import load_file",
            "",
            *(_GROUPED if trunk.norm == "group" and own else ()),
            f'model = timm.create_model("{name}", num_classes=0{grouped})',
            *(["group_norms(model)"] if trunk.norm == "group" and own else []),
            f"missing, unexpected = model.load_state_dict(load_file({export.file!r}), strict=False)",
            "assert not unexpected",
            "model.eval()  # a body: what is missing is a head",
        ]
    )


_GROUPED = (
    "from timm.layers.norm_act import BatchNormAct2d, GroupNormAct",
    "",
    "",
    "def group_norms(module):  # in place of batch norms",
    "    for name, child in module.named_children():",
    "        if not isinstance(child, torch.nn.BatchNorm2d):",
    "            group_norms(child)",
    "            continue",
    "        channels = child.num_features",
    "        if isinstance(child, BatchNormAct2d):",
    "            norm = GroupNormAct(channels, math.gcd(32, channels), eps=child.eps, apply_act=False)",
    "            norm.act, norm.drop = child.act, child.drop",
    "        else:",
    "            norm = torch.nn.GroupNorm(math.gcd(32, channels), channels, eps=child.eps)",
    "        setattr(module, name, norm)",
    "",
    "",
)
