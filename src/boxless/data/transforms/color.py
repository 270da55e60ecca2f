"""The photometric part of the augmentations, on the training device.

Each sample draws its own strengths and its own chances. All random numbers are drawn on the CPU, so that every device
sees the same views and no decision waits for the device. The order of the four jitter operations is drawn once per
batch and view; every sample still meets each order equally often.

A GPU changes all images of a batch together, see `color_gpu`; a processor one after the other, as here, by OpenCV, on
pixels as they were cut. An image of 224 px stays in the cache from its first change to its last. Red, green and blue of
a pixel lie side by side, as OpenCV's vectorised loops and channels_last convolutions want them. It takes a quarter of
the time of the same changes as tensor operations, most of which went to the hue.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxless.geometry.affine import compose, mirror
from boxless.geometry.boxes import own_rows
from boxless.geometry.view import View

Pixels = NDArray[np.float32]
"""(H, W, 3), RGB, 0..1."""

LUMA = (0.299, 0.587, 0.114)
SOLARIZED_FROM = 128 / 255


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


class Step(NamedTuple):
    """One change of a batch's images.

    Attributes:
        name: brightness, contrast, saturation, hue (torchvision's ColorJitter), gray, blur or solarize.
        chosen: (B,), which images are changed.
        amount: (B,), factors of the first three, a share of the circle of hues, the blur's standard deviation, px.
    """

    name: str
    chosen: Tensor
    amount: Tensor


def augment(view: View, settings: Photometric, generator: torch.Generator, compiled: bool = False) -> View:
    """Flip, jitter, grey, blur and solarise views of uint8 pixels, in this order (BYOL, appendix B).

    Args:
        view: image (B, 3, H, W) uint8 on any device.
        settings: probabilities and strengths.
        generator: on the CPU.
        compiled: true if a GPU's jitter is compiled, which saves it two thirds of its passes over the images.

    Returns:
        Views with float images in 0..1 whose maps know of the flips.
    """
    flipped, steps = _draw(len(view.image), settings, generator)
    if view.image.device.type == "cpu":
        from_source = compose(mirror(view.size[1], flipped), view.from_source)
        return View(one_by_one(view.image, flipped, steps), from_source)
    from boxless.data.transforms.color_gpu import together

    view = view.mirrored(flipped)
    return view.with_image(together(view.image, steps, compiled))


def _draw(count: int, settings: Photometric, generator: torch.Generator) -> tuple[Tensor, list[Step]]:
    """Which of the images are flipped, (count,), and what is done to them after that."""

    def chance(probability: float) -> Tensor:
        return own_rows(count, lambda rows: torch.rand(rows, generator=generator)) < probability

    def strength(amount: float) -> Tensor:
        return (own_rows(count, lambda rows: torch.rand(rows, generator=generator)) * 2 - 1) * amount

    flipped, jittered = chance(settings.flip), chance(settings.jitter)
    jitter = [
        Step("brightness", jittered, 1 + strength(settings.brightness)),
        Step("contrast", jittered, 1 + strength(settings.contrast)),
        Step("saturation", jittered, 1 + strength(settings.saturation)),
        Step("hue", jittered, strength(settings.hue)),
    ]
    steps = [jitter[number] for number in torch.randperm(4, generator=generator).tolist()]
    steps.append(Step("gray", chance(settings.gray), torch.ones(count)))
    sigma = own_rows(count, lambda rows: torch.empty(rows).uniform_(*settings.blur_sigma, generator=generator))
    steps.append(Step("blur", chance(settings.blur), sigma))
    steps.append(Step("solarize", chance(settings.solarize), torch.ones(count)))
    return flipped, steps


def radius_of(sigma: float, side: int) -> int:
    """Radius of a blur, px: four standard deviations, and less than the image's side."""
    return min(max(1, int(4 * sigma + 0.5)), side - 1)


def one_by_one(image: Tensor, flipped: Tensor, steps: list[Step]) -> Tensor:
    """Flip images left and right if `flipped` (B,), then apply the steps.

    Args:
        image: (B, 3, H, W) uint8, best with its channels last in memory.
        flipped: (B,).
        steps: in their order.

    Returns:
        (B, 3, H, W) float, 0..1, channels last in memory.
    """
    sources = image.permute(0, 2, 3, 1).contiguous().numpy()
    result = torch.empty(sources.shape)
    targets: Pixels = result.numpy()
    mirrored = flipped.tolist()
    plan = [(CHANGES[step.name], step.chosen.tolist(), step.amount.tolist()) for step in steps]

    def change(number: int) -> None:
        source = cv2.flip(sources[number], 1) if mirrored[number] else sources[number]
        pixels = np.multiply(source, np.float32(1 / 255), out=targets[number])
        for function, chosen, amounts in plan:
            if chosen[number]:
                pixels = function(pixels, amounts[number])
        if pixels is not targets[number]:
            targets[number] = pixels

    threads = torch.get_num_threads()
    if threads == 1:
        for number in range(len(sources)):
            change(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(change, range(len(sources))))
    return result.permute(0, 3, 1, 2)


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return _clipped(np.multiply(pixels, np.float32(factor), out=pixels))


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = float(np.dot(cv2.mean(pixels)[:3], LUMA))
    pixels *= np.float32(factor)
    pixels += np.float32(mean * (1 - factor))
    return _clipped(pixels)


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    mix = factor * np.eye(3) + (1 - factor) * np.array([LUMA] * 3)
    return _clipped(_mixed(pixels, mix))


def _hue(pixels: Pixels, turn: float) -> Pixels:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)  # hue in degrees
    cv2.add(hsv, np.array([360 * (turn % 1), 0, 0, 0]), dst=hsv)
    return _pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))  # which takes hues above 360, but none below 0


def _gray(pixels: Pixels, _: float) -> Pixels:
    return _mixed(pixels, np.array([LUMA] * 3))


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    radius = radius_of(sigma, min(pixels.shape[:2]))
    taps = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return _pixels(cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101))


def _solarize(pixels: Pixels, _: float) -> Pixels:
    return np.subtract(1, pixels, out=pixels, where=pixels >= SOLARIZED_FROM)


def _clipped(pixels: Pixels) -> Pixels:
    return np.clip(pixels, 0, 1, out=pixels)


def _mixed(pixels: Pixels, matrix: NDArray[np.float64]) -> Pixels:
    """Each new channel as a row of the matrix (3, 3) times the old ones."""
    return _pixels(cv2.transform(pixels, matrix))


def _pixels(array: object) -> Pixels:
    return np.asarray(array, np.float32)


CHANGES: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "gray": _gray,
    "blur": _blur,
    "solarize": _solarize,
}
