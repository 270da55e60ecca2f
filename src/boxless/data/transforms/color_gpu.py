"""The photometric changes on a GPU: all images of a batch together."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from boxless.data.transforms.color import LUMA, SOLARIZED_FROM, Step, radius_of


def together(image: Tensor, steps: list[Step], compiled: bool = False) -> Tensor:
    """The steps on all images (B, 3, H, W) uint8 of a batch at a time; the result is float, 0..1."""
    image = torch.div(image.contiguous(), 255)
    jitter = _compiled_jitter() if compiled else _jitter

    def changed(part: Tensor, name: str, amount: Tensor) -> Tensor:
        if name == "blur":
            return blur(part, amount)
        if name == "gray":
            return _gray(part).expand_as(part).contiguous()
        if name == "solarize":
            return torch.where(part >= SOLARIZED_FROM, 1 - part, part)
        return jitter(part, name, amount.to(part.device, non_blocking=True))

    for step in steps:
        at = step.chosen.nonzero().squeeze(1)
        if len(at) == len(image):
            image = changed(image, step.name, step.amount)
        elif len(at):
            places = at.to(image.device, non_blocking=True)
            image.index_copy_(0, places, changed(image[places], step.name, step.amount[at]))
    return image


@cache
def _compiled_jitter() -> Callable[[Tensor, str, Tensor], Tensor]:
    return torch.compile(_jitter, dynamic=True)  # other images are chosen in every step


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image with its own standard deviation.

    Args:
        image: (B, 3, H, W).
        sigma: (B,), px, on the CPU.
    """
    radius = radius_of(float(sigma.max()), min(image.shape[-2:]))
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1).to(image.device, non_blocking=True)
    kernel = taps.repeat_interleave(3, 0)[:, None, None]  # (3B, 1, 1, taps)
    flat = image.reshape(1, -1, *image.shape[-2:])
    flat = functional.pad(flat, (radius,) * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel, groups=len(kernel))
    flat = functional.conv2d(flat, kernel.transpose(-1, -2), groups=len(kernel))
    return flat.view(image.shape)


def _jitter(image: Tensor, name: str, factor: Tensor) -> Tensor:
    """One operation of torchvision's ColorJitter on images (B, 3, H, W) with factors (B,), in place."""
    factor = factor[:, None, None, None]
    if name == "brightness":
        return image.mul_(factor).clamp_(0, 1)
    if name == "contrast":
        mean = _gray(image.mean((-2, -1), keepdim=True))
        return image.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)
    if name == "saturation":
        gray = _gray(image).mul_(1 - factor)
        return image.mul_(factor).add_(gray).clamp_(0, 1)
    return _turn_hue(image, factor)


def _gray(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by a share of the circle, (B, 1, 1, 1), in place.

    Of each pixel, value (the highest channel) and chroma (highest - lowest) stay. With the hue h in 0..6,
    red = lowest + chroma * clip(|h - 3| - 1, 0, 1), green = value - chroma * clip(|h - 2| - 1, 0, 1) and
    blue = value - chroma * clip(|h - 4| - 1, 0, 1), without sorting pixels into six cases.
    """
    red, green, blue = image.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - lowest
    of_green = torch.add(blue - red, chroma, alpha=2)
    of_blue = torch.add(red - green, chroma, alpha=4)
    hue = torch.where(value == red, green - blue, torch.where(value == green, of_green, of_blue))
    hue.div_(chroma.clamp(min=1e-8)).add_(turn[:, 0], alpha=6)
    hue.sub_((hue / 6).floor_(), alpha=6)
    red.copy_(torch.addcmul(lowest, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1)))
    green.copy_(torch.addcmul(value, chroma, (hue - 2).abs_().sub_(1).clamp_(0, 1), value=-1))
    blue.copy_(torch.addcmul(value, chroma, (hue - 4).abs_().sub_(1).clamp_(0, 1), value=-1))
    return image
