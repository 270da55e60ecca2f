"""The feature pyramid on a body: torchvision's, with what a plain ViT's one map needs before it."""

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from boxless.detectors.backbones import Body, TimmBody


def feature_pyramid(
    body: Body, channels: int, extra: ExtraFPNBlock | None, norm: Callable[[int], nn.Module] | None, first: int = 0
) -> FeaturePyramidNetwork:
    """The pyramid on the body's maps from number `first` on, `channels` wide, with torchvision's `extra` level.

    Without `norm` its convolutions have biases, as in torchvision's COCO detectors.
    """
    plain = isinstance(body, TimmBody) and body.plain
    build = SimplePyramid if plain else FeaturePyramidNetwork
    return build(list(body.widths)[first:], channels, extra, norm)


class SimplePyramid(FeaturePyramidNetwork):  # type: ignore[misc]
    """ViTDet's pyramid on the last map of a plain ViT (Li et al., 2022, arXiv:2203.16527, section 3).

    Deconvolutions make strides 8 and 4 of the map of stride 16, as wide as in the authors' code; stride 16 stays and
    stride 32 is max-pooled by the body. What follows there is a 1x1 and a 3x3 convolution per level, and here
    torchvision's FPN, which is the same with its top-down sums; norms are the trunk's and not layer norms.

    Args:
        widths: widths of the body's maps, at strides 4 (or 8) to 32.
        channels: channels of every level.
        extra: torchvision's further level.
        norm: constructor; None for no norms.
    """

    def __init__(
        self, widths: list[int], channels: int, extra: ExtraFPNBlock | None, norm: Callable[[int], nn.Module] | None
    ) -> None:
        width = widths[-1]
        super().__init__([width // 4, width // 2, width, width][-len(widths) :], channels, extra, norm)
        up = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.deconvolutions = nn.ModuleDict({"1": up})
        if len(widths) == 4:
            halves = nn.ConvTranspose2d(width, width // 2, 2, 2), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
            between = nn.Identity() if norm is None else norm(width // 2)
            self.deconvolutions["0"] = nn.Sequential(halves[0], between, nn.GELU(), halves[1])

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """The levels by torchvision's names, of the body's maps."""
        maps: dict[str, Tensor] = super().forward({**x, **{n: up(x[n]) for n, up in self.deconvolutions.items()}})
        return maps
