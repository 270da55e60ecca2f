"""The photometric part of the augmentations, batched on the training device.

Each sample draws its own strengths and its own chances. All random numbers are drawn on the CPU, so that every device
sees the same views and no decision waits for the device. The order of the four jitter operations is drawn once per
batch and view; every sample still meets each order equally often.
"""

from collections.abc import Callable
from functools import cache

import cv2
import torch
from torch import Tensor
from torch.nn import functional

from boxless.data.specs import Photometric
from boxless.geometry.draws import own_rows
from boxless.geometry.view import View

Change = Callable[[Tensor, Tensor], Tensor]
"""Images (B, 3, H, W), which it may overwrite, and an amount each (B,), on the CPU, to images."""

_LUMA = (0.299, 0.587, 0.114)


def augment(view: View, settings: Photometric, generator: torch.Generator, compiled: bool = False) -> View:
    """Flip, jitter, grey, blur and solarise views of uint8 pixels, in this order (BYOL, appendix B).

    Args:
        view: image (B, 3, H, W) uint8 on any device.
        settings: probabilities and strengths.
        generator: on the CPU.
        compiled: whether the jitter is compiled, which saves a GPU two thirds of its passes over the images.

    Returns:
        Views with float images in 0..1 whose maps know of the flips.
    """
    count, device = len(view.image), view.image.device

    def chance(probability: float) -> Tensor:
        return own_rows(count, lambda rows: torch.rand(rows, generator=generator)) < probability

    def strength(amount: float) -> Tensor:
        return (own_rows(count, lambda rows: torch.rand(rows, generator=generator)) * 2 - 1) * amount

    view = view.mirrored(chance(settings.flip))
    jittered = chance(settings.jitter)
    factors = {
        "brightness": 1 + strength(settings.brightness),
        "contrast": 1 + strength(settings.contrast),
        "saturation": 1 + strength(settings.saturation),
        "hue": strength(settings.hue),
    }
    names, ones = list(factors), torch.ones(count)
    order = [names[number] for number in torch.randperm(4, generator=generator).tolist()]
    jitter = _compiled_jitter() if compiled else _jitter
    changes: list[tuple[Tensor, Change, Tensor]] = [
        (jittered, _jitter_in(name, jitter), factors[name]) for name in order
    ]
    changes.append((chance(settings.gray), lambda part, _: _gray(part).expand_as(part), ones))
    sigma = own_rows(count, lambda rows: torch.empty(rows).uniform_(*settings.blur_sigma, generator=generator))
    changes.append((chance(settings.blur), blur, sigma))
    changes.append((chance(settings.solarize), lambda part, _: torch.where(part >= 128 / 255, 1 - part, part), ones))

    image = torch.empty_like(view.image, dtype=torch.float32, memory_format=torch.contiguous_format)
    # On a processor, one sample per thread at a time: it stays in the cache from the first operation to the last.
    step = torch.get_num_threads() if device.type == "cpu" else count
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part = torch.div(view.image[rows], 255, out=image[rows])
        for chosen, change, amount in changes:
            _apply(part, chosen[rows], change, amount[rows])
    return view.with_image(image)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image with its own standard deviation.

    Args:
        image: (B, 3, H, W).
        sigma: (B,), px, on the CPU.
    """
    if image.device.type != "cpu":
        return _blur_together(image, sigma)
    # OpenCV takes a third of the convolutions' time, and each image only as many taps as it needs.
    blurred = torch.empty_like(image, memory_format=torch.contiguous_format)
    for number, channels in enumerate(image):
        taps = _taps(sigma[number : number + 1], image)[0].numpy()
        for source, out in zip(channels.numpy(), blurred[number].numpy(), strict=True):
            cv2.sepFilter2D(source, -1, taps, taps, dst=out, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _blur_together(image: Tensor, sigma: Tensor) -> Tensor:
    taps = _taps(sigma, image).to(image.device, non_blocking=True)
    kernel = taps.repeat_interleave(3, 0)[:, None, None]  # (3B, 1, 1, taps)
    flat = image.reshape(1, -1, *image.shape[-2:])
    flat = functional.pad(flat, (taps.shape[1] // 2,) * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel, groups=len(kernel))
    flat = functional.conv2d(flat, kernel.transpose(-1, -2), groups=len(kernel))
    return flat.view(image.shape)


def _taps(sigma: Tensor, image: Tensor) -> Tensor:
    """Gaussian weights (B, taps) that sum to 1, out to four standard deviations of the widest."""
    radius = min(max(1, int(4 * float(sigma.max()) + 0.5)), min(image.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1)
    return torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1)


def _apply(image: Tensor, chosen: Tensor, change: Change, amount: Tensor) -> None:
    """Change the chosen images in place."""
    at = chosen.nonzero().squeeze(1)
    if len(at) == len(image):
        image.copy_(change(image, amount))  # where the change was made in place, this does nothing
    elif len(at):
        places = at.to(image.device, non_blocking=True)
        image.index_copy_(0, places, change(image[places], amount[at]))


def _jitter_in(name: str, jitter: Callable[[Tensor, str, Tensor], Tensor]) -> Change:
    return lambda image, factor: jitter(image, name, factor.to(image.device, non_blocking=True))


@cache
def _compiled_jitter() -> Callable[[Tensor, str, Tensor], Tensor]:
    return torch.compile(_jitter, dynamic=True)  # other images are chosen in every step


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
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


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
