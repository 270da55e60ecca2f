"""Random numbers for the images of a batch that several processes share."""

from collections.abc import Callable

from torch import Tensor, distributed


def own_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """This process's rows of what is drawn for all processes, so that no image's numbers depend on how many there are.

    Args:
        rows: of each process.
        draw: number of rows -> numbers (rows, ...), by a generator that is in the same state on all processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return draw(rows)
    return draw(rows * distributed.get_world_size()).chunk(distributed.get_world_size())[distributed.get_rank()]
