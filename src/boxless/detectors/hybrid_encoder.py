"""RT-DETR's hybrid encoder (Zhao et al., 2023, arXiv:2304.08069, section 4.2), the neck of a trunk.

A transformer layer lets the cells of C5 look at each other (AIFI); convolutions then merge C3..C5 downwards and
upwards (CCFF) into P3..P5. v2 (arXiv:2407.17140) has it as it was. The modules are those of Hugging Face's
`transformers`, under the names of its `RTDetrV2Model`. They start as in the authors' code: the library, which is made
for weights that are loaded, would start norms with scales near zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from boxless.errors import UserError


@dataclass(frozen=True)
class HybridConfig:
    """Sizes of RT-DETR's hybrid encoder; the defaults are the paper's on ResNet-50. Its width is `fpn_channels`."""

    heads: int = 8
    """Attention heads, of the detector's decoder too; they divide the width."""
    feedforward: int = 1024
    """Width inside the linear layers over C5."""
    expansion: float = 1.0
    """Width inside the blocks that merge two levels, as a share of the encoder's (on ResNet-18 and 34: 0.5)."""


class HybridEncoder(nn.Module):
    """From C3..C5 to P3..P5.

    Args:
        widths: widths of the body's maps, of which the last three are taken.
        channels: channels of every level.
        norm: constructor, for wherever the authors have batch norms.
        config: its other sizes.

    Raises:
        UserError: if `transformers` is not installed, or the sizes do not go together.
    """

    def __init__(
        self, widths: Sequence[int], channels: int, norm: Callable[[int], nn.Module], config: HybridConfig
    ) -> None:
        super().__init__()
        modeling, settings = library(channels, config)
        self.encoder_input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), norm(channels)) for width in widths[-3:]
        )
        self.encoder = modeling.RTDetrV2HybridEncoder(settings)
        begin_anew(self.encoder, norm)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """P3..P5 of the body's maps, named "0".."2".

        Each level must be twice as large as the next. If the body has rounded (7 cells, then 4), the finer maps are
        enlarged.
        """
        maps = [project(one) for project, one in zip(self.encoder_input_proj, list(x.values())[-3:], strict=True)]
        height, width = maps[-1].shape[-2:]
        maps = [_enlarged(one, (times * height, times * width)) for one, times in zip(maps, (4, 2, 1), strict=True)]
        levels: list[Tensor] = self.encoder(maps).last_hidden_state
        return {str(number): level for number, level in enumerate(levels)}


def library(channels: int, config: HybridConfig, **sizes: Any) -> tuple[Any, Any]:
    """Hugging Face's module of RT-DETRv2 and a configuration; imported late, because it is large and optional.

    Raises:
        UserError: if it is not installed, or the sizes do not go together.
    """
    if channels % config.heads or channels % 4:
        raise UserError(
            f"trunk.fpn_channels: {channels}; the hybrid encoder needs a multiple of 4 and of its {config.heads} heads"
        )
    try:
        from transformers import RTDetrV2Config
        from transformers.models.rt_detr_v2 import modeling_rt_detr_v2
    except ImportError:
        raise UserError(
            "trunk.neck: hybrid needs Hugging Face's transformers; install it with pip install 'boxless[detr]'"
        ) from None
    # Without one it would describe a large backbone; what is built from this one is thrown away.
    smallest = {"embedding_size": 2, "hidden_sizes": [2] * 4, "depths": [1] * 4, "layer_type": "basic"}
    settings = RTDetrV2Config(
        backbone_config={"model_type": "rt_detr_resnet", "out_indices": [2, 3, 4], **smallest},
        d_model=channels,
        encoder_hidden_dim=channels,
        encoder_attention_heads=config.heads,
        encoder_ffn_dim=config.feedforward,
        hidden_expansion=config.expansion,
        decoder_in_channels=[channels] * 3,
        decoder_attention_heads=config.heads,
        decoder_ffn_dim=4 * channels,
        tie_word_embeddings=False,  # of classifiers that it has twice, of which one set is kept
        **sizes,
    )
    return modeling_rt_detr_v2, settings


def begin_anew(module: nn.Module, norm: Callable[[int], nn.Module]) -> None:
    """Put the asked norm where there are batch norms, and start every layer as torch does."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child.num_features))
        else:
            begin_anew(child, norm)
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def _enlarged(one: Tensor, size: tuple[int, int]) -> Tensor:
    return one if one.shape[-2:] == size else interpolate(one, size, mode="bilinear", align_corners=False)
