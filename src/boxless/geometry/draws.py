"""Random numbers for the images of a batch that is divided among processes."""

from collections.abc import Callable

from torch import Tensor, distributed


def own_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Draw random rows for all processes and return this process's, so that they do not depend on their number.

    Args:
        rows: number of rows per process.
        draw: maps a number of rows to numbers (rows, ...), with a generator in the same state on all processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return draw(rows)
    return draw(rows * distributed.get_world_size()).chunk(distributed.get_world_size())[distributed.get_rank()]
