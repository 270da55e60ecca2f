"""The photometric part of the augmentations, batched on the training device.

Each sample draws its own strengths and its own chances. All random numbers are drawn on the CPU, so that every device
sees the same views and no decision waits for the device. The order of the four jitter operations is drawn once per
batch and view; every sample still meets each order equally often.
"""

import torch
from torch import Tensor
from torch.nn import functional

from boxless.data.specs import Photometric
from boxless.geometry.view import View

_LUMA = (0.299, 0.587, 0.114)


def augment(view: View, settings: Photometric, generator: torch.Generator) -> View:
    """Flip, jitter, grey, blur and solarise views of uint8 pixels, in this order (BYOL, appendix B).

    Args:
        view: image (B, 3, H, W) uint8 on any device.
        settings: probabilities and strengths.
        generator: on the CPU.

    Returns:
        Views with float images in 0..1 whose maps know of the flips.
    """
    count, device = len(view.image), view.image.device

    def chance(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    def strength(amount: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * amount

    view = view.mirrored(chance(settings.flip).to(device))
    image = view.image.float() / 255
    jittered = chance(settings.jitter)
    factors = {
        "brightness": 1 + strength(settings.brightness) * jittered,
        "contrast": 1 + strength(settings.contrast) * jittered,
        "saturation": 1 + strength(settings.saturation) * jittered,
        "hue": strength(settings.hue) * jittered,
    }
    operations = list(factors.items())
    for number in torch.randperm(4, generator=generator).tolist():
        name, factor = operations[number]
        image = _jitter(image, name, factor.to(device, non_blocking=True))
    image = _where(chance(settings.gray), image, lambda part, _: _gray(part).expand_as(part))
    sigma = torch.empty(count).uniform_(*settings.blur_sigma, generator=generator)
    image = _where(chance(settings.blur), image, lambda part, at: blur(part, sigma[at].to(device)))
    image = _where(chance(settings.solarize), image, lambda part, _: torch.where(part >= 128 / 255, 1 - part, part))
    return view.with_image(image)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image with its own standard deviation.

    Args:
        image: (B, 3, H, W).
        sigma: (B,), px.
    """
    radius = min(max(1, int(4 * float(sigma.max()) + 0.5)), min(image.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), 1)  # (B, taps), sums to 1
    kernel = kernel.repeat_interleave(3, 0)[:, None, None]  # (3B, 1, 1, taps)
    flat = image.reshape(1, -1, *image.shape[-2:])
    flat = functional.pad(flat, (radius,) * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel, groups=len(kernel))
    flat = functional.conv2d(flat, kernel.transpose(-1, -2), groups=len(kernel))
    return flat.view(image.shape)


def _where(chosen: Tensor, image: Tensor, change) -> Tensor:  # type: ignore[no-untyped-def]
    at = chosen.nonzero().squeeze(1)
    if len(at) == 0:
        return image
    if len(at) == len(image):
        return change(image, at)  # type: ignore[no-any-return]
    places = at.to(image.device, non_blocking=True)
    return image.index_copy(0, places, change(image[places], at))


def _jitter(image: Tensor, name: str, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    if name == "brightness":
        return (image * factor).clamp_(0, 1)
    if name == "contrast":
        mean = _gray(image).mean((-3, -2, -1), keepdim=True)
        return torch.lerp(mean, image, factor).clamp_(0, 1)
    if name == "saturation":
        return torch.lerp(_gray(image), image, factor).clamp_(0, 1)
    return _turn_hue(image, factor)


def _gray(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by a share of the circle, (B, 1, 1, 1).

    Of each pixel, value and chroma stay; f(n) = v - c * clip(min(k, 4 - k), 0, 1), k = (n + 6 h) mod 6, gives
    red (n=5), green (n=3) and blue (n=1) back without sorting pixels into six cases.
    """
    value, channel = image.max(1, keepdim=True)
    chroma = value - image.amin(1, keepdim=True)
    red, green, blue = image.unbind(1)
    difference = torch.stack([green - blue, blue - red, red - green], 1).gather(1, channel)
    sixth = torch.where(chroma > 0, difference / chroma.clamp(min=1e-8), 0) + 2 * channel  # hue in 0..6, modulo 6
    k = torch.tensor([5.0, 3.0, 1.0], device=image.device).view(1, 3, 1, 1) + sixth + 6 * turn
    k = k.remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
