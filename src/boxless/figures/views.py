"""Pictures of what a run sees: its views with boxes or places, and its proposals."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from boxless.data.annotations.read import read_labels
from boxless.data.images import BadImage, decode
from boxless.data.index import ImageIndex
from boxless.data.transforms.color import augment
from boxless.data.transforms.crops import ViewSpec
from boxless.data.unlabelled import Proposals, ViewDataset, collate, fill_resized
from boxless.errors import UserError
from boxless.geometry.affine import transform_points
from boxless.geometry.view import View
from boxless.methods.soco import shared_boxes
from boxless.plots.proposals import proposal_statistics, proposals_on_images, recall_curves
from boxless.plots.style import save
from boxless.plots.views import show_views
from boxless.proposals.generate import make_proposals
from boxless.proposals.recall import best_overlaps, labelled_pairs
from boxless.proposals.table import ProposalTable
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.proposals import proposal_file, proposal_method

Pixels = NDArray[np.uint8]

ROWS = 4
"""Images whose views are drawn."""
SAMPLE = 60
"""Images that proposals are made for where the run's own table is not there."""
LONGEST = 512
"""Longest side of a source image as it is drawn, px."""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files without suffix, and what it shows in words."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of a few images.

    Attributes:
        sources: (H, W, 3) uint8 each, no longer than `LONGEST`.
        scales: px of these per source px.
        views: in the method's order, images 0..1.
        boxes: (B, N, 4), source px, padded.
        valid: (B, N).
    """

    sources: tuple[Pixels, ...]
    scales: tuple[float, ...]
    views: tuple[View, ...]
    boxes: Tensor
    valid: Tensor

    def pixels(self, view: int, row: int) -> Pixels:
        """A view of an image as uint8 (H, W, 3)."""
        image = (self.views[view].image[row] * 255).round().clamp(0, 255).to(torch.uint8)
        pixels: Pixels = image.permute(1, 2, 0).contiguous().numpy()
        return pixels


def sample_images(index: ImageIndex, count: int, seed: int) -> tuple[list[int], list[Pixels]]:
    """Rows of images drawn at random that can be read, and the images (H, W, 3).

    Raises:
        UserError: if none can.
    """
    rows: list[int] = []
    images: list[Pixels] = []
    order = np.random.default_rng(seed).permutation(len(index))[: 20 * count].tolist()
    for row in order:
        if len(rows) == count:
            break
        try:
            images.append(decode(index.path(row)))
            rows.append(row)
        except BadImage:
            pass
    if not rows:
        raise UserError(f"{index.path(order[0])}: cannot be read, nor can the next images: check the data")
    return rows, images


def shrink(image: Pixels, longest: int = LONGEST) -> tuple[Pixels, float]:
    """An image no longer than that, px, and by which factor it was shrunk."""
    scale = min(1.0, longest / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def make_views(few: ImageIndex, specs: tuple[ViewSpec, ...], boxes: Proposals | None, seed: int) -> ViewBatch:
    """The views of a few images that can be read, in their order, cut and coloured as in training."""
    shrunk = [shrink(decode(few.path(row))) for row in range(len(few))]
    dataset = ViewDataset(few, specs, boxes, seed)
    batch = collate([dataset[0, row] for row in range(len(few))], specs)
    generator = torch.Generator().manual_seed(seed)
    views = fill_resized(batch, specs)
    views = tuple(augment(view, spec.photometric, generator) for view, spec in zip(views, specs, strict=True))
    sources, scales = zip(*shrunk, strict=True)
    return ViewBatch(sources, scales, views, batch.boxes, batch.valid)


def existing_proposals(index: ImageIndex, recipe: PretrainRecipe, out: Path) -> ProposalTable | None:
    """The table that the run has, or None if it has not made it yet."""
    file = proposal_file(index, recipe, out)
    return ProposalTable.open(file) if recipe.proposals.file is not None or file.is_file() else None


def make_few_proposals(few: ImageIndex, recipe: PretrainRecipe) -> ProposalTable:
    """The boxes of a few images, made now and not kept."""
    with TemporaryDirectory() as folder:
        return make_proposals(few, Path(folder) / "few.parquet", proposal_method(recipe), 1, quiet=True).table


def preview(index: ImageIndex, recipe: PretrainRecipe, out: Path) -> Path:
    """Draw the views that a pretraining would see, before it begins; the PNG file."""
    picture = draw_views(index, recipe, out, recipe.seed)
    return save(picture.figure, out / "figures" / picture.name, picture.caption)[0]


def draw_views(index: ImageIndex, recipe: PretrainRecipe, out: Path, seed: int) -> Picture:
    """The views of a few images, beside their sources, with boxes where the method compares boxes, else with places."""
    rows, _ = sample_images(index, ROWS, seed)
    few = index.subset(rows)
    boxes = None
    if recipe.method.needs_boxes:
        boxes = (existing_proposals(index, recipe, out) or make_few_proposals(few, recipe)).aligned_to(few)
    shown = make_views(few, recipe.method.views(), boxes, seed)
    sources = View(torch.empty(len(shown.sources), 0, LONGEST, LONGEST), _shrinking(shown.scales))
    frames = (sources, *shown.views)
    images = [
        [shown.sources[row], *(shown.pixels(view, row) for view in range(len(shown.views)))]
        for row in range(len(shown.sources))
    ]
    none = torch.zeros(len(images), 0, 4)
    chosen, there = none, torch.zeros(len(images), 0, dtype=torch.bool)
    points: list[list[NDArray[Any]]] = []
    if recipe.method.needs_boxes:
        count = int(getattr(recipe.method, "boxes", 4))
        generator = torch.Generator().manual_seed(seed)
        chosen, there = shared_boxes(shown.views, shown.boxes, shown.valid, count, generator)
    else:
        centres = shown.views[0].cell_centres(3, 3).flatten(1, 2)  # (B, 9, 2), source px
        points = [[_inside(frame, centres, row) for frame in frames] for row in range(len(images))]
    placed = [frame.boxes(chosen) if frame is not sources else _scaled(chosen, shown.scales) for frame in frames]
    windows = torch.stack([view.windows() for view in shown.views], 1) * torch.tensor(shown.scales)[:, None, None]
    figure = show_views(
        images,
        [[at[row].numpy() for at, _ in placed] for row in range(len(images))],
        [[((share[row] > 0) & there[row]).numpy() for _, share in placed] for row in range(len(images))],
        ["source", *(f"V{number}, {view.size[0]} px" for number, view in enumerate(shown.views, 1))],
        points,
        [each.numpy() for each in windows],
    )
    what = "boxes that the method compares" if recipe.method.needs_boxes else "nine places of the first view"
    return Picture(
        "views",
        figure,
        f"{len(images)} images and the {len(shown.views)} views that {recipe.method.name} takes of each, as the "
        f"network sees them; numbered in one colour: {what}, the same in all views. Outlines in the source: the part "
        "that a view shows.",
    )


def _shrinking(scales: tuple[float, ...]) -> Tensor:
    return torch.eye(2, 3)[None] * torch.tensor(scales)[:, None, None]


def _scaled(boxes: Tensor, scales: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Boxes (B, K, 4) in the pixels of the shrunken sources, and that each is seen."""
    return boxes * torch.tensor(scales)[:, None, None], torch.ones(boxes.shape[:2])


def _inside(frame: View, centres: Tensor, row: int) -> NDArray[Any]:
    """Places (N, 2) of one image in a frame's pixels, NaN outside."""
    places = transform_points(frame.from_source, centres)[row]
    height, width = frame.size
    inside = (places >= 0).all(1) & (places[:, 0] <= width) & (places[:, 1] <= height)
    return torch.where(inside[:, None], places, torch.nan).numpy()


def draw_proposals(
    index: ImageIndex, recipe: PretrainRecipe, out: Path, labels: str | None, seed: int
) -> Iterator[Picture]:
    """Proposals on a few images, their numbers and sizes, and what they cover of the labels, where there are any."""
    table = existing_proposals(index, recipe, out)
    if table is None:
        rows, _ = sample_images(index, SAMPLE, seed)
        index = index.subset(sorted(rows))
        table = make_few_proposals(index, recipe)
    packed = table.aligned_to(index)
    rows, images = sample_images(index, 6, seed)
    shrunk = [shrink(image) for image in images]
    drawn = [packed.boxes(row) * scale for row, (_, scale) in zip(rows, shrunk, strict=True)]
    yield Picture(
        "proposals",
        proposals_on_images([image for image, _ in shrunk], drawn, seed),
        f"Boxes without labels on {len(rows)} images, up to twelve of each drawn at random.",
    )
    counts, sides = packed.counts(), np.sqrt(np.prod(packed.values[:, 2:] - packed.values[:, :2], axis=1))
    middle = (float(np.median(each)) if len(each) else 0.0 for each in (counts, sides))
    yield Picture(
        "proposals-statistics",
        proposal_statistics(counts, sides),
        "Histograms of {:.0f} images: a median of {:.0f} boxes per image, of {:.0f} px a side.".format(
            len(index), *middle
        ),
    )
    if labels is not None:
        pairs = labelled_pairs(packed, index, read_labels(labels, "val"))
        overlaps = best_overlaps(pairs)
        share = 100 * float((overlaps["all"] >= 0.5).mean()) if len(overlaps["all"]) else float("nan")
        yield Picture(
            "proposals-recall",
            recall_curves(overlaps, float(np.mean([len(boxes) for boxes, _ in pairs]))),
            f"Share of {len(overlaps['all'])} labelled objects that a proposal covers, over the IoU asked for: "
            f"{share:.0f} % at IoU 0.5.",
        )
