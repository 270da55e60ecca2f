"""Batches on their way to the device."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from lightning.fabric import Fabric
from torch.nn.functional import pad

from boxless.data.loader import Batch
from boxless.training.turns import largest


def fabric_batches(fabric: Fabric, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches on the device; a GPU is brought the next one, from pinned memory, while it works on this one."""
    if fabric.device.type != "cuda":
        yield from batches
        return
    beside = torch.cuda.Stream(fabric.device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(beside):
            coming = batch.to(fabric.device), beside.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = coming
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """A batch that was copied on another stream, for this one to use once it is there."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for view in batch.views:
        if view is not None:
            view.image.record_stream(stream)  # its memory is not given away while this stream uses it
    return batch


def equally_wide(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, with room for as many boxes per image as any process has, so that all draw alike among them."""
    for batch in batches:
        more = largest(batch.boxes.shape[1]) - batch.boxes.shape[1]
        boxes, valid = pad(batch.boxes, (0, 0, 0, more)), pad(batch.valid, (0, more))
        yield replace(batch, boxes=boxes, valid=valid)
