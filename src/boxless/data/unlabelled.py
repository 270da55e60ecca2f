"""Batches of views from images without labels: the work of a data worker on each image.

Every random number of a sample comes from (seed, epoch, row), so that batches do not depend on the number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, Sampler

from boxless.data.dataloader import make_loader, to_device
from boxless.data.images import BadImage, alike, open_image
from boxless.data.index import ImageIndex
from boxless.data.transforms.crops import ViewSpec, Window, cut, draw_window, least_scale, on_grid
from boxless.errors import UserError
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.training.distributed import largest


class Proposals(Protocol):
    """Proposals by row: `boxless.proposals.table.ProposalTable`."""

    def boxes(self, row: int) -> NDArray[np.float32]:
        """(N, 4), source px."""

    def size(self, row: int) -> tuple[int, int] | None:
        """Width and height of the image that the boxes were made for, px; None if that is not known."""


@dataclass(frozen=True)
class Sample:
    """One image's views, still on the CPU.

    Attributes:
        views: (3, size, size) uint8 each.
        maps: (2, 3) each, source px -> view px.
        boxes: (N, 4), source px.
        skipped: images that could not be read and were passed over for this one: (path, reason).
    """

    views: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    boxes: Tensor
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Batch:
    """Views of B images with their proposals.

    Attributes:
        views: in the order of the method's specs; those with `resize_of` are None until `fill_resized`.
        boxes: (B, N, 4), source px, padded with zeros.
        valid: (B, N), which boxes are not padding.
        skipped: images that could not be read, as in `Sample`.
    """

    views: tuple[View | None, ...]
    boxes: Tensor
    valid: Tensor
    skipped: tuple[tuple[str, str], ...]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for copies that do not wait."""
        return replace(self, views=tuple(v and v.with_image(v.image.pin_memory()) for v in self.views))

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its images on a device; places stay on the CPU (see `View`)."""
        return replace(self, views=tuple(v and v.to(device) for v in self.views))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the images' memory from being given away while a stream uses it."""
        for view in self.views:
            if view is not None:
                view.image.record_stream(stream)


class ViewDataset(Dataset[Sample]):
    """Decodes a source image and cuts a method's views out of it.

    Args:
        index: the images.
        specs: the method's views.
        proposals: boxes of the images, or None if the method needs none.
        seed: seed of the run.
    """

    def __init__(self, index: ImageIndex, specs: Sequence[ViewSpec], proposals: Proposals | None, seed: int) -> None:
        self.index, self.specs, self.proposals, self.seed = index, tuple(specs), proposals, seed
        self.cut_specs = [spec for spec in self.specs if spec.resize_of is None]
        self.sizes = [spec.size for spec in self.cut_specs]

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """The views of a row in an epoch; an unreadable image gives its place to the next one that can be read."""
        _, row = place
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self.index)):
            candidate = (row + offset) % len(self.index)
            try:
                return self._sample(candidate, place, skipped)
            except BadImage as error:
                skipped.append((str(error.path), error.reason))
                if len(skipped) >= 1000:
                    break
        raise UserError(
            f"{skipped[0][0]}: {skipped[0][1]}; so are the next images, {len(skipped)} in all: check the data"
        )

    def drawn(
        self, row: int, place: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], list[Window]]:
        """The boxes (N, 4) of a row, source px, and the windows of the views that are cut from its image.

        Args:
            row: row of the image.
            place: epoch and row that the random draws are of.
            size: width and height of the image, px.

        Raises:
            UserError: the boxes were made for an image of another size.
        """
        if self.proposals is not None:
            self._check_size(row, self.proposals.size(row), size)
        none = np.zeros((0, 4), np.float32)
        boxes = none if self.proposals is None else self.proposals.boxes(row)
        random = np.random.default_rng((self.seed, *place))
        return boxes, [draw_window(spec, *size, boxes, random) for spec in self.cut_specs]

    def _check_size(self, row: int, known: tuple[int, int] | None, size: tuple[int, int]) -> None:
        if known is not None and not alike(known, size):
            raise UserError(
                f"{self.index.path(row)}: is {size[0]} x {size[1]} px upright, its proposals are for {known[0]} x "
                f"{known[1]}; delete their table (proposals.file, or proposals-*.parquet beside the run) and make it "
                "again with `boxless propose`, with --boxes-from made for these images"
            )

    def maps(self, windows: Sequence[Window]) -> tuple[Tensor, ...]:
        """Source px -> view px of each view that is cut, (2, 3), by its window."""
        side = torch.tensor(self.sizes)
        return crop_and_resize(torch.tensor(windows), side, side).unbind()

    def _sample(self, row: int, place: tuple[int, int], skipped: list[tuple[str, str]]) -> Sample:
        source = open_image(self.index.path(row))
        boxes, windows = self.drawn(row, place, source.size)
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8, where no view needs more.
        image = source.pixels(least_scale(windows, self.sizes))
        height, width = image.shape[:2]
        step = round(source.size[0] / width)
        windows = [on_grid(window, step, width, height) for window in windows]
        views = [torch.from_numpy(cut(image, *each)).permute(2, 0, 1) for each in zip(windows, self.sizes, strict=True)]
        maps = self.maps([(x1 * step, y1 * step, x2 * step, y2 * step) for x1, y1, x2, y2 in windows])
        return Sample(tuple(views), maps, torch.from_numpy(boxes), tuple(skipped))


def collate(samples: Sequence[Sample], specs: Sequence[ViewSpec]) -> Batch:
    """Samples as a batch."""
    count = max(1, max(len(sample.boxes) for sample in samples))
    boxes = torch.zeros(len(samples), count, 4)
    valid = torch.zeros(len(samples), count, dtype=torch.bool)
    for number, sample in enumerate(samples):
        boxes[number, : len(sample.boxes)] = sample.boxes
        valid[number, : len(sample.boxes)] = True
    images = zip(*(sample.views for sample in samples), strict=True)
    maps = zip(*(sample.maps for sample in samples), strict=True)
    cut_views = iter([View(_stack(i), torch.stack(m)) for i, m in zip(images, maps, strict=True)])
    views = tuple(None if spec.resize_of is not None else next(cut_views) for spec in specs)
    skipped = tuple(entry for sample in samples for entry in sample.skipped)
    return Batch(views, boxes, valid, skipped)


def _stack(images: Sequence[Tensor]) -> Tensor:
    # Pixels stay in the order in which they were cut: the device sorts them into channels sooner than a worker.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def fill_resized(batch: Batch, specs: Sequence[ViewSpec]) -> tuple[View, ...]:
    """All views of a batch, those that are smaller copies of others made on the device."""
    views = list(batch.views)
    for number, spec in enumerate(specs):
        if spec.resize_of is not None:
            original = views[spec.resize_of]
            assert original is not None, "a view can only be a smaller copy of an earlier one"
            views[number] = original.resized(spec.size)
    return tuple(view for view in views if view is not None)


def view_batches(
    dataset: ViewDataset,
    sampler: Sampler[list[tuple[int, int]]],
    workers: int,
    device: torch.device,
    decoder: Literal["processor", "gpu"] = "processor",
) -> Iterator[Batch]:
    """Batches on the device, in the sampler's order; JPEGs are decoded by the workers, or there."""
    if decoder == "gpu":
        from boxless.data.gpu_jpeg import Decoder, encoded_batches

        return to_device(encoded_batches(dataset, sampler, workers), device, Decoder(dataset))
    made = partial(collate, specs=dataset.specs)
    return to_device(make_loader(dataset, sampler, workers, made, device.type == "cuda"), device, Batch.to)


def equally_wide(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pad the batches' boxes to the largest number of any process, so that all processes draw alike."""
    for batch in batches:
        more = largest(batch.boxes.shape[1]) - batch.boxes.shape[1]
        boxes, valid = pad(batch.boxes, (0, 0, 0, more)), pad(batch.valid, (0, more))
        yield replace(batch, boxes=boxes, valid=valid)
