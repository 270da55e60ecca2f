"""The order of images when few shards are read at a time: those that are fetched, or that lie on a spinning disk."""

import numpy as np
from numpy.typing import NDArray


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
        random: what is drawn from.

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
