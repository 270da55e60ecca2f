"""The order of images when few shards are read at a time: downloaded ones, or those on a spinning disk.

Shards are fetched in the background before their first image is due.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from boxless.data.index import ImageIndex
from boxless.data.sampler import Place, TrainingSampler
from boxless.data.shards.files import ShardFile
from boxless.data.shards.read import ShardIndex
from boxless.errors import UserError

BUFFER = 8
"""Shards that are mixed where they have to be fetched."""
AHEAD = 2
"""Shards that are fetched before their time."""


def shard_sampler(index: ImageIndex, order: TrainingSampler, buffer: int | None) -> Sampler[list[Place]]:
    """An order of the same length with images of `buffer` shards at a time; raises as `make_sampler` does."""
    if (buffer is not None and buffer < 1) or not isinstance(index, ShardIndex):
        raise UserError(f"shard_buffer={buffer}: expected shards as data, made by boxless pack, and 1 or more")
    buffer = buffer or BUFFER
    processes = min(order.world, torch.cuda.device_count() or order.world)  # of this machine, all with shards of theirs
    index.require_room(processes * (buffer + 1 + AHEAD))
    mixed = ShardSampler(index, buffer, order)
    return PrefetchSampler(mixed, index) if index.remote else mixed


class ShardSampler(TrainingSampler):
    """The batches of an epoch from few shards at a time; `like` says how many, from where and for whom."""

    def __init__(self, index: ShardIndex, buffer: int, like: TrainingSampler) -> None:
        super().__init__(like.rows, like.batch, like.start, like.total, like.seed, like.rank, like.world)
        self.shard_of, self.buffer = index.columns["shard"], buffer

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch in their order, (N, 2)."""
        random = np.random.default_rng((self.seed, epoch))
        rows = mixed_rows(self.shard_of, self.buffer, self.batch, self.world, random)
        return np.stack([np.full_like(rows, epoch), rows], axis=1)


class PrefetchSampler(Sampler[list[Place]]):
    """The batches of an order, while the shards of those that follow are fetched in the background."""

    def __init__(self, order: TrainingSampler, index: ShardIndex) -> None:
        self.order, self.index = order, index
        self.depth = AHEAD * -(-len(index) // len(index.files)) // order.batch + 1

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Place]]:
        wanted: SimpleQueue[ShardFile | None] = SimpleQueue()
        Thread(target=_fetch, args=(wanted,), daemon=True).start()  # a daemon, so that no transfer holds up the end
        coming: deque[tuple[list[Place], set[int]]] = deque()
        live: Counter[int] = Counter()
        try:
            for places in self.order:
                shards = {int(self.index.columns["shard"][row]) for _, row in places}
                for shard in sorted(shards - (+live).keys()):
                    wanted.put(self.index.files[shard])
                live.update(shards)
                coming.append((places, shards))
                if len(coming) > self.depth:
                    yield self._next(coming, live)
            while coming:
                yield self._next(coming, live)
        finally:
            wanted.put(None)

    def _next(self, coming: deque[tuple[list[Place], set[int]]], live: Counter[int]) -> list[Place]:
        places, shards = coming.popleft()
        live.subtract(shards)
        return places


def mixed_rows(
    shard_of: NDArray[np.integer], buffer: int, batch: int, world: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """The rows of one epoch, each at most once, with images of at most `buffer` + 1 shards in turn.

    The shards are shuffled; the images of each then wait for a time that is drawn between none and that in which
    `buffer` shards pass. Every process has an equal share of the shards' sequence to itself, so that each shard is read
    by one process, or two. As many rows as make no whole batch are left out at the end, other ones in each epoch.

    Args:
        shard_of: (rows,), number of each row's shard.
        buffer: shards.
        batch: images per step of a process.
        world: processes.
        random: generator of the draws.

    Returns:
        (steps * world * batch,) rows: in each step the processes' batches one after another.
    """
    steps = len(shard_of) // (batch * world)
    if steps == 0:  # gone through again, as all data smaller than a batch
        return random.permutation(len(shard_of))
    turn = random.permutation(int(shard_of.max()) + 1)[shard_of]
    rows = np.argsort(turn + random.random(len(turn)))[: steps * batch * world].reshape(world, -1)
    late = np.argsort(turn[rows] + buffer * random.random(rows.shape), axis=1)
    return np.take_along_axis(rows, late, axis=1).reshape(world, steps, batch).swapaxes(0, 1).reshape(-1)


def _fetch(wanted: "SimpleQueue[ShardFile | None]") -> None:
    while (file := wanted.get()) is not None:
        with contextlib.suppress(UserError):  # the data worker that needs it will say so
            file.local()
