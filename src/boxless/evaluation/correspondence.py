"""Correspondence: how often a feature finds its own place, as LC-loss measures it (Islam et al., "More Analysis").

An image and its mirrored copy in other colours go through the frozen network; each cell of the first map looks for the
most similar cell (cosine) of the second. It is right if that is the mirrored cell.

Where strided convolutions overlap, as in ResNets, cell i looks around pixel 32 i: at a size of 32 k + 1 px the cells
lie symmetrically in the image, and mirroring the image mirrors them. At 32 k the mirrored cell looks at a place nearly
a whole cell away, and networks that were not trained to make up for it score as by chance, even without any change of
colours. LC-loss does not say which size it took.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from boxless.data.images import BadImage, open_image
from boxless.data.index import ImageIndex
from boxless.data.transforms.color import Photometric, augment
from boxless.data.transforms.crops import cut, least_scale, on_grid
from boxless.geometry.view import View

CHANGE = Photometric(flip=1.0)
"""The copy: always mirrored, then colour jitter, greyscale and blur as in BYOL at 224 px. The paper names these three
operations but not their strengths."""


def cell_places(cells: int, size: int) -> Tensor:
    """The middle of what each of the cells in a row looks at, (cells,), px of a view of `size` px.

    Cell i of strided convolutions looks around pixel i times the map's stride, 4 to 32; patches divide the view.
    """
    if size - 1 in [stride * (cells - 1) for stride in (4, 8, 16, 32)]:
        return torch.linspace(0.5, size - 0.5, cells)
    return (torch.arange(cells) + 0.5) * (size / cells)


def best_matches(features: Tensor, changed: Tensor) -> Tensor:
    """The most similar cell of the changed image for each cell.

    Args:
        features: (B, C, h, w) of the images.
        changed: (B, C, h, w) of their copies.

    Returns:
        (B, h * w), cells counted row by row; the first of equals.
    """
    similarity = normalize(features.flatten(2), dim=1).transpose(1, 2) @ normalize(changed.flatten(2), dim=1)
    return similarity.argmax(2)


def mirrored_cells(height: int, width: int) -> Tensor:
    """The cell of a mirrored image that shows what each cell shows: (h * w), counted row by row."""
    return torch.arange(height * width).view(height, width).flip(1).flatten()


def correspondence_accuracy(matches: Tensor, height: int, width: int) -> Tensor:
    """Share of cells (B, h * w) that found their mirrored cell, (B,) in 0..1; 1 / (h * w) by chance."""
    return (matches == mirrored_cells(height, width).to(matches.device)).double().mean(1)


@dataclass(frozen=True)
class Pair:
    """An image and its copy.

    Attributes:
        row: row of the data.
        image: (3, size, size) in 0..1, the whole image squashed to a square.
        changed: (3, size, size) in 0..1, mirrored and in other colours.
        skipped: (path, reason) of an image that could not be read; both are then empty.
    """

    row: int
    image: Tensor
    changed: Tensor
    skipped: tuple[str, str] | None = None


class PairDataset(Dataset[Pair]):
    """Reads images and changes them; the copy of an image depends on the seed and its row alone."""

    def __init__(self, paths: ImageIndex, size: int, seed: int) -> None:
        self.paths, self.size, self.seed = paths, size, seed
        self.change = CHANGE.at_scale(size / 224)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Pair:
        path = self.paths.path(row)
        try:
            source = open_image(path)
            width, height = source.size
            window = (0.0, 0.0, float(width), float(height))
            image = source.pixels(least_scale([window], [self.size]))
        except BadImage as error:
            return Pair(row, torch.zeros(3, 0, 0), torch.zeros(3, 0, 0), (path, error.reason))
        window = on_grid(window, round(width / image.shape[1]), image.shape[1], image.shape[0])
        pixels = torch.from_numpy(cut(image, window, self.size)).permute(2, 0, 1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
        changed = augment(View(pixels[None], torch.zeros(1, 2, 3)), self.change, generator).image[0]
        return Pair(row, pixels.float() / 255, changed)
