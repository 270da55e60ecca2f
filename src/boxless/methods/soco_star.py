"""SoCo*: SoCo with a fourth view (Wei et al., 2021, arXiv:2106.02637, section 4.3).

V4 is another random crop of the image, of 192 px, that "performs the same forward process as V2 and V3": its boxes and
those of V1 predict each other. Everything else is SoCo's; see soco.py, also for the departures from the official code,
which calls the small view its fourth.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from boxless.data.transforms.crops import ViewSpec
from boxless.methods.soco import SoCoFamily


@dataclass(frozen=True)
class SoCoStarConfig(SoCoFamily):
    """SoCo*'s hyper-parameters (paper, section 4.3): SoCo's, and these."""

    name: Literal["soco-star"] = "soco-star"
    small_size: int = 112
    """Size of V3, which is V2 made smaller, px."""
    fourth_size: int = 192
    """Size of V4, px."""
    pooling: Literal["own_level", "all_levels"] = "own_level"
    """Levels that a box is pooled from: the level of its size, or all, of which one counts (official code)."""

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it, V3 the same crop made small, V4 another crop."""
        first, second = super().views()
        third = ViewSpec(self.small_size, self.second, resize_of=1)
        return first, second, third, replace(second, size=self.fourth_size)

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with blur, V3 and V4 scaled to match."""
        return replace(super().at_size(size), small_size=size // 2, fourth_size=size * 6 // 7)
