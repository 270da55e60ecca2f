"""SoCo*: SoCo with a fourth view (Wei et al., 2021, arXiv:2106.02637, section 4.3).

V4 is one more random crop of the image, of 192 px, that "performs the same forward process as V2 and V3": its boxes and
those of V1 predict each other. Everything else is SoCo's; see soco.py, also for the departures from the official code,
which counts the small view as its fourth.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.methods.soco import SoCo


@dataclass(frozen=True)
class SoCoStarConfig:
    """The hyper-parameters of SoCo* (paper, sections 3.2, 3.3, 4.1 and 4.3)."""

    name: Literal["soco-star"] = "soco-star"
    size: int = 224
    """Of V1 and V2, px."""
    small_size: int = 112
    """Of V3, which is V2 made smaller, px."""
    fourth_size: int = 192
    """Of V4, px."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the image's area that V2 and V4 show."""
    pooling: Literal["own_level", "all_levels"] = "own_level"
    """Where a box is pooled: at the level of its size, or at all, of which one counts (official code)."""
    empty_places: Literal["masked", "copies"] = "masked"
    """What stands for boxes that an image lacks: nothing, or copies of those that it has (official code)."""
    cut_out: float = 0.0
    """That a box of the other views than V1 loses a square; SoCo* has none in paper and code."""
    boxes: int = 4
    """K, boxes per image and step (paper, table 5c)."""
    jitter: float = 0.1
    """Largest shift and growth of a jittered box, as a share of its sides."""
    jitter_probability: float = 0.5
    """That a box of V1 is jittered."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """Of V1: BYOL's T."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """Of V2, V3 and V4: BYOL's T'."""
    hidden: int = 4096
    """Width inside projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Of the target at the start, rising to 1."""

    needs_boxes: ClassVar[bool] = True
    neck: ClassVar[str] = "fpn"
    pairs: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1), (0, 2), (0, 3))
    """Views that predict each other."""

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it, V3 the same crop made small, V4 another crop."""
        first = ViewSpec(self.size, self.first)
        second = ViewSpec(self.size, self.second, self.scale, min_boxes=2)
        return (
            first,
            second,
            ViewSpec(self.small_size, self.second, resize_of=1),
            replace(second, size=self.fourth_size),
        )

    def at_size(self, size: int) -> "SoCoStarConfig":
        """The same method on views of another size: blur, V3 and V4 keep their proportion to them."""
        first, second = (view.at_scale(size / self.size) for view in (self.first, self.second))
        return replace(self, size=size, small_size=size // 2, fourth_size=size * 6 // 7, first=first, second=second)

    def build(self, trunk: Trunk) -> SoCo:
        """SoCo* around a trunk that has an FPN and a box head."""
        return SoCo(trunk, self)
