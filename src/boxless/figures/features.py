"""Pictures of what networks make of an image: how strongly each place answers, and which places are alike."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from boxless.data.index import ImageIndex
from boxless.detectors.trunk import LEVELS
from boxless.figures.views import Picture, sample_images, shrink
from boxless.plots.features import attention_panels, level_maps, pca_panels
from boxless.tasks.feature_extractor import FeatureExtractor

Pixels = NDArray[np.uint8]

ROWS = 4
"""Images whose maps are drawn."""
LONGEST = 448
"""Size of an image whose maps are drawn, px; its sides are multiples of 32."""


def _images(index: ImageIndex, seed: int) -> list[Pixels]:
    """A few images whose sides are multiples of 32, so that their maps cover them exactly."""
    _, images = sample_images(index, ROWS, seed)
    fitted = []
    for image in images:
        shrunk, _ = shrink(image, LONGEST)
        height, width = (max(64, 32 * round(side / 32)) for side in shrunk.shape[:2])
        pixels = torch.from_numpy(shrunk).permute(2, 0, 1)[None].float()
        pixels = interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].round().clamp(0, 255)
        fitted.append(np.ascontiguousarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy()))
    return fitted


@torch.inference_mode()
def _maps(network: FeatureExtractor, image: Pixels) -> dict[str, Tensor]:
    """C2..C5 and, where the weights have a pyramid, its levels: name -> (C, h, w)."""
    trunk = network.trunk
    pixels = trunk.normalize(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    body: dict[str, Tensor] = trunk.backbone.body(pixels)
    maps = {f"C{number}": body[name][0] for number, name in enumerate(LEVELS, 2)}
    if network.has_fpn and trunk.config.neck not in ("none", "c4"):
        levels: dict[str, Tensor] = trunk.backbone.fpn(dict(list(body.items())[trunk.backbone.first :]))
        maps |= {f"P{int(name) + 2}": each[0] for name, each in levels.items() if name in LEVELS}
    return maps


def _length(features: Tensor) -> NDArray[np.float32]:
    """The length of each cell's vector, (h, w)."""
    lengths: NDArray[np.float32] = features.norm(dim=0).numpy()
    return lengths


def _in_common(networks: Sequence[FeatureExtractor], wanted: str, instead: str) -> str:
    """The map that all weights have: the wanted one where they were trained with a pyramid."""
    return wanted if all(network.has_fpn for network in networks) else instead


def draw_maps(networks: Sequence[FeatureExtractor], index: ImageIndex, seed: int) -> Picture:
    """The levels of the first network's pyramid, or of its body where the weights have none."""
    network, images = networks[0], _images(index, seed)
    found = [_maps(network, image) for image in images]
    letter = "P" if any(name.startswith("P") for name in found[0]) else "C"
    levels = [{name: _length(each) for name, each in maps.items() if name.startswith(letter)} for maps in found]
    what = "feature pyramid" if letter == "P" else "backbone (the weights have no feature pyramid)"
    return Picture(
        "maps",
        level_maps(images, levels),
        f"{len(images)} images and how strongly each place of them answers at {', '.join(levels[0])} of the {what} of "
        f"{network.name}.",
    )


def draw_pca(networks: Sequence[FeatureExtractor], index: ImageIndex, seed: int) -> Picture:
    """Dense features as colours, weights side by side."""
    images, level = _images(index, seed), _in_common(networks, "P3", "C4")
    maps = {
        f"{network.name}, {level}": [_maps(network, image)[level].permute(1, 2, 0).numpy() for image in images]
        for network in networks
    }
    return Picture(
        "pca",
        pca_panels(images, maps),
        f"{len(images)} images and their features at {level} as colours, the first three principal components of all "
        f"images together: {', '.join(network.name for network in networks)}. Alike colours are alike features.",
    )


def draw_attention(networks: Sequence[FeatureExtractor], index: ImageIndex, seed: int) -> Picture:
    """Draw the strength of the features at C5 at each place, with weights side by side."""
    images = _images(index, seed)
    maps = {network.name: [_length(_maps(network, image)["C5"]) for image in images] for network in networks}
    return Picture(
        "attention",
        attention_panels(images, maps),
        f"{len(images)} images and how strongly each place of them answers at C5, the length of its feature vector: "
        f"{', '.join(maps)}.",
    )
