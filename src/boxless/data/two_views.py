"""Two views of each unlabelled image for self-training: a weak one for the teacher, a strong one for the student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from boxless.data.detection import AugmentConfig, resize, zoom_window
from boxless.data.images import BadImage, decode
from boxless.data.index import ImageIndex
from boxless.data.transforms.color import Photometric, Step, one_by_one
from boxless.geometry.view import View

STRONG = Photometric(flip=0.0, saturation=0.4, blur=0.5)
"""Unbiased Teacher's colours; flips are drawn with the geometry."""
ERASED = ((0.7, (0.05, 0.2), (0.3, 3.3)), (0.5, (0.02, 0.2), (0.1, 6.0)), (0.3, (0.02, 0.2), (0.05, 8.0)))
"""Unbiased Teacher's patches: probability, share of the image, ratio of height to width."""
TRIES = 10
"""Draws of a patch until it is smaller than the image, as in torchvision's RandomErasing."""


@dataclass(frozen=True)
class TwoViews:
    """Two views of one image.

    Attributes:
        weak: resized and perhaps flipped, uint8.
        strong: with its own flip and scale, other colours, and patches of noise, uint8.
        erased: (E, 4), the patches, px of the strong view.
        row: row of the image.
        skipped: (path, reason) of an image that could not be read; the views are then small and grey.
    """

    weak: View
    strong: View
    erased: Tensor
    row: int
    skipped: tuple[str, str] | None = None

    def pin_memory(self) -> "TwoViews":
        """The same views in page-locked memory, for copies that do not wait."""
        weak, strong = (view.with_image(view.image.pin_memory()) for view in (self.weak, self.strong))
        return replace(self, weak=weak, strong=strong)


class TwoViewDataset(Dataset[TwoViews]):
    """Reads images without labels.

    Args:
        index: the images.
        min_sizes: shorter side of the views, px; one of them is drawn for each.
        max_size: longest side, px.
        augment: whose vertical flips both views have, and whose scales the strong one.
        seed: seed of the run.
    """

    def __init__(
        self, index: ImageIndex, min_sizes: Sequence[int], max_size: int, augment: AugmentConfig, seed: int
    ) -> None:
        self.index, self.min_sizes, self.max_size = index, tuple(min_sizes), max_size
        self.augment, self.seed = augment, seed

    def __getitem__(self, place: tuple[int, int]) -> TwoViews:
        epoch, row = place
        random = np.random.default_rng((self.seed, epoch, row, 2))
        try:
            source = decode(self.index.path(row))
        except BadImage as error:
            grey = View(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), torch.eye(2, 3)[None])
            return TwoViews(grey, grey, torch.zeros(0, 4), row, (str(error.path), error.reason))
        weak = self._view(source, 1.0, random)
        strong = self._view(source, random.uniform(*self.augment.zoom), random)
        colored = one_by_one(strong.image, torch.zeros(1, dtype=torch.bool), draw_steps(random))
        strong, erased = erase(strong.with_image(colored.mul(255).round().to(torch.uint8)), random)
        return TwoViews(weak, strong, erased, row)

    def _view(self, source: NDArray[np.uint8], scale: float, random: np.random.Generator) -> View:
        flipped = random.random() < 0.5
        upside_down = self.augment.vertical_flip and random.random() < 0.5
        window = zoom_window(source.shape[1], source.shape[0], scale, random) if scale > 1 else None
        sides = (int(random.choice(self.min_sizes)), self.max_size)
        shorter, longest = (max(1, round(side * min(scale, 1))) for side in sides)
        image, from_source = resize(source, shorter, longest, flipped, window, upside_down)
        return View(image[None], from_source[None])


def draw_steps(random: np.random.Generator) -> list[Step]:
    """Changes of one image's colours in `STRONG`'s ranges."""

    def shift(most: float) -> float:
        return random.uniform(-most, most)

    jittered = random.random() < STRONG.jitter
    jitter = [
        ("brightness", jittered, 1 + shift(STRONG.brightness)),
        ("contrast", jittered, 1 + shift(STRONG.contrast)),
        ("saturation", jittered, 1 + shift(STRONG.saturation)),
        ("hue", jittered, shift(STRONG.hue)),
    ]
    steps = [jitter[number] for number in random.permutation(4)]
    steps += [("gray", random.random() < STRONG.gray, 1.0)]
    steps += [("blur", random.random() < STRONG.blur, random.uniform(*STRONG.blur_sigma))]
    return [Step(name, torch.tensor([chosen]), torch.tensor([amount])) for name, chosen, amount in steps]


def erase(view: View, random: np.random.Generator) -> tuple[View, Tensor]:
    """A view with patches of noise, and the patches, (E, 4), px."""
    image, (height, width), patches = view.image.clone(), view.size, []
    for probability, shares, ratios in ERASED:
        if random.random() >= probability:
            continue
        for _ in range(TRIES):
            area = height * width * random.uniform(*shares)
            ratio = np.exp(random.uniform(*np.log(ratios)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
                noise = random.integers(0, 256, (3, h, w), dtype=np.uint8)
                image[0, :, top : top + h, left : left + w] = torch.from_numpy(noise)
                patches.append([left, top, left + w, top + h])
                break
    return view.with_image(image), torch.tensor(patches, dtype=torch.float32).view(-1, 4)
