"""A body so small that whole runs with it can be kept as files: 7000 weights, known to timm as `boxless_tiny`."""

from typing import Any

import pytest

pytest.importorskip("timm")

from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

BACKBONE = "timm:boxless_tiny"


@register_model
def boxless_tiny(pretrained: bool = False, **options: Any) -> ResNet:
    """timm's ResNet with one block of 8 channels per stage."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return ResNet(BasicBlock, (1, 1, 1, 1), stem_type="deep", stem_width=4, channels=(8, 8, 8, 8), **options)
