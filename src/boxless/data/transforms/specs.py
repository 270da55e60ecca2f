"""Specifications of views: how they are cut from their source and how their colours change."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Photometric:
    """The part of a view's augmentation that leaves its shape alone: probabilities and strengths, in this order."""

    flip: float = 0.5
    """Probability of a left-right flip; boxes follow."""
    jitter: float = 0.8
    """Probability of the colour jitter."""
    brightness: float = 0.4
    """Largest change of brightness, as a share."""
    contrast: float = 0.4
    """Largest change of contrast, as a share."""
    saturation: float = 0.2
    """Largest change of saturation, as a share."""
    hue: float = 0.1
    """Largest shift of hue, as a share of the colour circle."""
    gray: float = 0.2
    """Probability of greyscale."""
    blur: float = 1.0
    """Probability of the Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, view px."""
    solarize: float = 0.0
    """Probability of inverting all values from 128 on."""

    def at_scale(self, scale: float) -> "Photometric":
        """The same augmentation for views that are `scale` times as large: only the blur is measured in pixels."""
        low, high = self.blur_sigma
        return replace(self, blur_sigma=(low * scale, high * scale))


@dataclass(frozen=True)
class ViewSpec:
    """Specification of a view: its size, window and colours.

    Attributes:
        size: size of the square view, px.
        photometric: applied after cutting, drawn again for each view.
        scale: range of the crop's share of the source's area; None takes the whole image, squashed to a square.
        ratio: range of the crop's width over height, drawn log-uniformly.
        resize_of: number of an earlier view that this one is a smaller copy of, before flip and colour.
        least_side: draw a crop's width and height on their own, uniformly from this to the source's side less this, px
            (UP-DETR's patches); `scale` and `ratio` then do not count.
        min_boxes: boxes of the source that the crop should show; it is drawn again up to 5 times to find them.
    """

    size: int
    photometric: Photometric
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resize_of: int | None = None
    min_boxes: int = 0
    least_side: int | None = None
