"""From files to batches: what each worker does with one image, and the order of images over a whole run.

Every random number of a sample comes from (seed, epoch, row), and the order of images from (seed, epoch). So batches do
not depend on the number of workers, and a run that resumes at step s sees what an undisturbed one would have seen.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from boxless.data.images import BadImage, opened
from boxless.data.sampler import repeated_rows
from boxless.data.shards.order import mixed_rows
from boxless.data.transforms.crops import Window, cut, draw_window, least_scale, on_grid
from boxless.data.transforms.specs import ViewSpec
from boxless.errors import UserError
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View


class Paths(Protocol):
    """Images by row: `boxless.data.index.ImageIndex`."""

    def __len__(self) -> int: ...

    def path(self, row: int) -> str:
        """The file of a row."""


class Boxes(Protocol):
    """Proposals by row: `boxless.proposals.packed.PackedBoxes`."""

    def boxes(self, row: int) -> NDArray[np.float32]:
        """(N, 4), source px."""

    def size(self, row: int) -> tuple[int, int] | None:
        """Width and height of the image that the boxes were made for, px; None where that is not known."""


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


class ViewDataset(Dataset[Sample]):
    """Decodes a source image and cuts a method's views out of it.

    Args:
        paths: the images.
        specs: the method's views.
        boxes: proposals of the images, or None where the method needs none.
        seed: of the run.
    """

    def __init__(self, paths: Paths, specs: Sequence[ViewSpec], boxes: Boxes | None, seed: int) -> None:
        self.paths, self.specs, self.proposals, self.seed = paths, tuple(specs), boxes, seed
        self.cut_specs = [spec for spec in self.specs if spec.resize_of is None]
        self.sizes = [spec.size for spec in self.cut_specs]

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """The views of a row in an epoch; an unreadable image gives its place to the next one that can be read."""
        _, row = place
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self.paths)):
            candidate = (row + offset) % len(self.paths)
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
            row: of the image.
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
        # Of labelled images too a pixel more or less is let pass.
        if known is not None and max(abs(known[0] - size[0]), abs(known[1] - size[1])) > 1:
            raise UserError(
                f"{self.paths.path(row)}: is {size[0]} x {size[1]} px upright, its proposals are for {known[0]} x "
                f"{known[1]}; delete their table (proposals.file, or proposals-*.parquet beside the run) and make it "
                "anew with `boxless propose`, its --boxes-from of the images as they are"
            )

    def maps(self, windows: Sequence[Window]) -> tuple[Tensor, ...]:
        """Source px -> view px of each view that is cut, (2, 3), by its window."""
        side = torch.tensor(self.sizes)
        return crop_and_resize(torch.tensor(windows), side, side).unbind()

    def _sample(self, row: int, place: tuple[int, int], skipped: list[tuple[str, str]]) -> Sample:
        source = opened(self.paths.path(row))
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


class Order(Sampler[list[tuple[int, int]]]):
    """The places (epoch, row) of each batch from a step on to the end of the run; incomplete last batches are dropped.

    Args:
        rows: of the data set.
        batch: images per step of this process.
        start: first step.
        total: steps of the whole run.
        seed: of the run.
        rank: of this process.
        world: number of processes; each takes its own share of every batch.
        repeats: (rows,) how often each row comes in an epoch on average, as `repeat_factors` has it; None for once.
            Another time counts as an epoch of its own, so that flips and sizes are drawn anew.
        shards: (rows,) the shard of each row and how many shards to mix, see `mixed_rows`; None for any order.
    """

    def __init__(
        self,
        rows: int,
        batch: int,
        start: int,
        total: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: NDArray[np.float64] | None = None,
        shards: tuple[NDArray[np.integer], int] | None = None,
    ) -> None:
        self.rows, self.batch, self.start, self.total = rows, batch, start, total
        self.seed, self.rank, self.world, self.repeats, self.shards = seed, rank, world, repeats, shards

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole = self.batch * self.world
        epoch = begin = 0
        if self.repeats is None:  # all epochs are equally long, so that those before the start need no drawing
            epoch = self.start // max(1, self.rows // whole)
            begin = epoch * max(1, self.rows // whole)
        rows, epochs = self._epoch(epoch)
        for step in range(self.start, self.total):
            while step >= begin + (steps := max(1, len(rows) // whole)):
                epoch, begin = epoch + 1, begin + steps
                rows, epochs = self._epoch(epoch)
            first = ((step - begin) * self.world + self.rank) * self.batch
            # A data set smaller than a batch is gone through again.
            places = [place % len(rows) for place in range(first, first + self.batch)]
            yield [(int(epochs[place]), int(rows[place])) for place in places]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of an epoch in their order, and for each the epoch that its random draws are of."""
        random = np.random.default_rng((self.seed, epoch))
        if self.shards is not None:
            rows = mixed_rows(*self.shards, self.batch, self.world, random)
            return rows, np.broadcast_to(epoch, len(rows))
        if self.repeats is None:
            return random.permutation(self.rows), np.broadcast_to(epoch, self.rows)
        rows, times = repeated_rows(self.repeats, random)
        return rows, epoch * int(np.ceil(self.repeats.max())) + times


class ViewCollate:
    """`collate` with its specs, for workers to pickle."""

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        self.specs = tuple(specs)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Samples as a batch."""
        return collate(samples, self.specs)


def view_batches(
    dataset: ViewDataset, order: Sampler[list[tuple[int, int]]], workers: int, pinned: bool
) -> DataLoader[Batch]:
    """Batches in the given order; workers live as long as the run."""
    return ordered_batches(dataset, ViewCollate(dataset.specs), order, workers, pinned)


def ordered_batches(
    dataset: Dataset[Any],
    collated: Callable[[Sequence[Any]], Any],
    order: Sampler[list[tuple[int, int]]],
    workers: int,
    pinned: bool,
) -> DataLoader[Any]:
    """What `collated` makes of a data set's samples for each batch of an order."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collated,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=one_thread,
    )


def one_thread(_: int) -> None:
    """Keep a data worker to one thread, for the cores belong to the others and to training, and to its work.

    Signals that ask a run to end reach its workers too (Ctrl-C, SLURM's), which it needs for the step that it finishes.
    Where the run ends while it fetches a batch, the worker's thread that hands it out has nothing to add.
    """
    torch.set_num_threads(1)
    sys.excepthook = _without_lost_connections
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _without_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave_when_told(run: int) -> None:
    """End this data worker when its run, a process id, says so: one that ends by an error would wait for it forever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
