"""The order of images over a whole run: shuffled epochs, and LVIS's repeat factors (arXiv:1908.03195).

The order follows from (seed, epoch) alone, so that a run that resumes at step s sees what an undisturbed one would have
seen, on any number of processes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from boxless.data.annotations.types import LabelledData
from boxless.data.index import ImageIndex

Place = tuple[int, int]
"""Epoch and row; random draws of a sample follow from both."""


class TrainingSampler(Sampler[list[Place]]):
    """The places (epoch, row) of each batch from a step on to the end of the run; incomplete last batches are dropped.

    Args:
        rows: number of rows of the data set.
        batch: images per step of this process.
        start: first step.
        total: steps of the whole run.
        seed: seed of the run.
        rank: rank of this process.
        world: number of processes; each takes its own share of every batch.
    """

    equally_long_epochs = True

    def __init__(self, rows: int, batch: int, start: int, total: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.rows, self.batch, self.start, self.total = rows, batch, start, total
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        whole = self.batch * self.world
        epoch = begin = 0
        if self.equally_long_epochs:  # those before the start need no drawing
            epoch = self.start // max(1, self.rows // whole)
            begin = epoch * max(1, self.rows // whole)
        places = self.epoch(epoch)
        for step in range(self.start, self.total):
            while step >= begin + (steps := max(1, len(places) // whole)):
                epoch, begin = epoch + 1, begin + steps
                places = self.epoch(epoch)
            first = ((step - begin) * self.world + self.rank) * self.batch
            # A data set smaller than a batch is gone through again.
            chosen = places[np.arange(first, first + self.batch) % len(places)]
            yield [(number, row) for number, row in chosen.tolist()]

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch in their order, (N, 2)."""
        rows = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return np.stack([np.full_like(rows, epoch), rows], axis=1)


class RepeatFactorSampler(TrainingSampler):
    """Shows images more often than once an epoch, as `repeat_factors` says; see `TrainingSampler`.

    Another time counts as an epoch of its own, so that flips and sizes are drawn again.

    Args:
        factors: (rows,), how often each row comes in an epoch on average.
        batch: images per step of this process.
        start: first step.
        total: steps of the whole run.
        seed: seed of the run.
        rank: rank of this process.
        world: number of processes.
    """

    equally_long_epochs = False

    def __init__(
        self,
        factors: NDArray[np.float64],
        batch: int,
        start: int,
        total: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(len(factors), batch, start, total, seed, rank, world)
        self.factors = factors

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch in their order, (N, 2)."""
        rows, times = repeated_rows(self.factors, np.random.default_rng((self.seed, epoch)))
        return np.stack([epoch * int(np.ceil(self.factors.max())) + times, rows], axis=1)


def make_sampler(
    index: ImageIndex,
    batch: int,
    start: int,
    total: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    shard_buffer: int | None = None,
) -> Sampler[list[Place]]:
    """The sampler of a pretraining: shards on this machine are drawn from like a folder.

    `shard_buffer`: draw from this many shards at a time, which is how shards that are fetched are always read.

    Raises:
        UserError: `shard_buffer` is for other data, or so many shards have no room.
    """
    sampler = TrainingSampler(len(index), batch, start, total, seed, rank, world)
    if shard_buffer is None and not index.remote:
        return sampler
    from boxless.data.shards.sampler import shard_sampler

    return shard_sampler(index, sampler, shard_buffer)


def repeat_factors(data: LabelledData, threshold: float) -> NDArray[np.float64]:
    """Mean number of times that each image is seen in an epoch, (N,), each at least 1.

    r(c) = max(1, sqrt(threshold / f(c))), f(c) the share of images that show class c; r(image) = max over its classes.
    """
    shown = [np.unique(image.labels) for image in data.images]
    counts = np.bincount(np.concatenate([*shown, np.zeros(0, np.int64)]), minlength=len(data.classes))
    by_class = np.sqrt(threshold * len(data) / np.maximum(counts, 1)).clip(1)
    return np.array([by_class[labels].max(initial=1.0) for labels in shown])


def repeated_rows(factors: NDArray[np.float64], random: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """The rows of one epoch in random order, each as often as its factor says, and which time (from 0) it is seen.

    A factor of 2.3 is 3 with a chance of 0.3, else 2.
    """
    times = (np.floor(factors) + (random.random(len(factors)) < factors % 1)).astype(np.int64)
    rows = np.repeat(np.arange(len(factors)), times)
    which = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    order = random.permutation(len(rows))
    return rows[order], which[order]
