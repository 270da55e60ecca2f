"""SoCo-C4: SoCo for detectors without a pyramid (Wei et al., 2021, arXiv:2106.02637, section 3.3, last paragraph).

The modification is three-fold: boxes are pooled from C4, the last stage of the ResNet is the head, and V3 is left out.
There are no levels to assign, and the head's norms see boxes and not images, as later in the detector. Trains backbone
(conv1 to layer3) and RoI head (layer4). Everything else is SoCo's; see soco.py.

The official code departs in three more ways, each of which is an option: V2 shows 0.6 to 1 of the image
(`scale=(0.6, 1.0)`), boxes are not jittered (`jitter_probability=0`), squares of V2 are cut out (`cut_out=0.5`).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from boxless.data.specs import Photometric, ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.methods.soco import SoCo


@dataclass(frozen=True)
class SoCoC4Config:
    """The hyper-parameters of SoCo-C4 (paper, sections 3.2, 3.3 and 4.1)."""

    name: Literal["soco-c4"] = "soco-c4"
    size: int = 224
    """Of both views, px."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the image's area that V2 shows."""
    empty_places: Literal["masked", "copies"] = "masked"
    """What stands for boxes that an image lacks: nothing, or copies of those that it has (official code)."""
    cut_out: float = 0.0
    """That a box of V2 loses a square (official code: 0.5)."""
    boxes: int = 4
    """K, boxes per image and step (paper, table 5c)."""
    jitter: float = 0.1
    """Largest shift and growth of a jittered box, as a share of its sides."""
    jitter_probability: float = 0.5
    """That a box of V1 is jittered (official code: 0)."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """Of V1: BYOL's T."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """Of V2: BYOL's T'."""
    hidden: int = 4096
    """Width inside projector and predictor."""
    output: int = 256
    """Width of projections and predictions."""
    momentum: float = 0.99
    """Of the target at the start, rising to 1."""

    needs_boxes: ClassVar[bool] = True
    neck: ClassVar[str] = "c4"
    pooling: ClassVar[str] = "own_level"
    pairs: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1),)
    """Views that predict each other."""

    def views(self) -> tuple[ViewSpec, ...]:
        """V1 the whole image, V2 a crop of it."""
        return ViewSpec(self.size, self.first), ViewSpec(self.size, self.second, self.scale, min_boxes=2)

    def at_size(self, size: int) -> "SoCoC4Config":
        """The same method on views of another size: blur keeps its proportion to them."""
        first, second = (view.at_scale(size / self.size) for view in (self.first, self.second))
        return replace(self, size=size, first=first, second=second)

    def build(self, trunk: Trunk) -> SoCo:
        """SoCo around a C4 trunk."""
        return SoCo(trunk, self)
