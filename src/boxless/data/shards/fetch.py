"""The order of a run over folders or shards, and shards that are fetched before their first image is due."""

import contextlib
from collections import Counter, deque
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

import torch
from torch.utils.data import Sampler

from boxless.data.index import ImageIndex
from boxless.data.shards.files import ShardFile
from boxless.data.shards.index import ShardIndex
from boxless.data.unlabelled import Order
from boxless.errors import UserError

BUFFER = 8
"""Shards that are mixed where they have to be fetched."""
AHEAD = 2
"""Shards that are fetched before their time."""

Places = list[tuple[int, int]]


def image_order(
    index: ImageIndex,
    batch: int,
    start: int,
    total: int,
    seed: int,
    buffer: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Sampler[Places]:
    """Return the places of each batch of a run, see `Order`: shards here are drawn from like a folder.

    `buffer`: draw from this many shards at a time, which is how shards that are fetched are read always.

    Raises:
        UserError: `buffer` is for other data, or so many shards have no room.
    """
    if buffer is not None and (buffer < 1 or not isinstance(index, ShardIndex)):
        raise UserError(f"shard_buffer={buffer}: expected shards as data, made by boxless pack, and 1 or more")
    if not isinstance(index, ShardIndex) or (buffer is None and not index.remote):
        return Order(len(index), batch, start, total, seed, rank, world)
    buffer = buffer or BUFFER
    processes = min(world, torch.cuda.device_count() or world)  # of this machine, all with shards of their own
    index.require_room(processes * (buffer + 1 + AHEAD))
    shards = (index.columns["shard"], buffer)
    order = Order(len(index), batch, start, total, seed, rank, world, shards=shards)
    return Ahead(order, index) if index.remote else order


class Ahead(Sampler[Places]):
    """The batches of an order, while the shards of those that follow are fetched in the background."""

    def __init__(self, order: Order, index: ShardIndex) -> None:
        self.order, self.index = order, index
        self.depth = AHEAD * -(-len(index) // len(index.files)) // order.batch + 1

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Places]:
        wanted: SimpleQueue[ShardFile | None] = SimpleQueue()
        Thread(target=_fetch, args=(wanted,), daemon=True).start()  # a daemon, so that no transfer holds up the end
        coming: deque[tuple[Places, set[int]]] = deque()
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

    def _next(self, coming: deque[tuple[Places, set[int]]], live: Counter[int]) -> Places:
        places, shards = coming.popleft()
        live.subtract(shards)
        return places


def _fetch(wanted: "SimpleQueue[ShardFile | None]") -> None:
    while (file := wanted.get()) is not None:
        with contextlib.suppress(UserError):  # the data worker that needs it will say so
            file.local()
