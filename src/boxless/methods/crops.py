"""The two crops of an image that most methods compare: hyper-parameters that their configs inherit."""

from dataclasses import dataclass, replace
from typing import Self

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec


@dataclass(frozen=True)
class UnequalCrops:
    """Two crops, augmented differently: BYOL's (arXiv:2006.07733, appendix B), which later papers adopted."""

    name: str
    size: int = 224
    """Size of the full-size views, px."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the fraction of the image's area that a crop shows."""
    first: Photometric = Photometric(blur=1.0)  # noqa: RUF009 (frozen)
    """Colours and blur of the first view: BYOL's T."""
    second: Photometric = Photometric(blur=0.1, solarize=0.2)  # noqa: RUF009
    """Colours and blur of the second view: BYOL's T'."""

    def views(self) -> tuple[ViewSpec, ...]:
        """Two random crops, augmented differently."""
        return ViewSpec(self.size, self.first, self.scale), ViewSpec(self.size, self.second, self.scale)

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with the blur scaled to match."""
        first, second = (look.at_scale(size / self.size) for look in (self.first, self.second))
        return replace(self, size=size, first=first, second=second)


@dataclass(frozen=True, kw_only=True)
class EqualCrops:
    """Two crops with the same augmentation, as each paper says."""

    name: str
    size: int = 224
    """Size of the full-size views, px."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the fraction of the image's area that a crop shows."""
    photometric: Photometric
    """Colours and blur of all views."""

    def views(self) -> tuple[ViewSpec, ...]:
        """Two random crops with the same augmentation."""
        view = ViewSpec(self.size, self.photometric, self.scale)
        return view, view

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with the blur scaled to match."""
        return replace(self, size=size, photometric=self.photometric.at_scale(size / self.size))
