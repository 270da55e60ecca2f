"""Batches on their way to the device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch.nn.functional import pad
from torch.utils.data import Sampler

from boxless.data.gpu_jpeg import Decoder, encoded_batches
from boxless.data.unlabelled import Batch, ViewDataset, view_batches
from boxless.training.distributed import largest


def arriving_batches(
    fabric: Fabric,
    dataset: ViewDataset,
    order: Sampler[list[tuple[int, int]]],
    workers: int,
    decoder: Literal["processor", "gpu"],
) -> Iterator[Batch]:
    """A data set's batches on the device; JPEGs are decoded by the workers, or there."""
    if decoder == "gpu":
        return fabric_batches(fabric, encoded_batches(dataset, order, workers), Decoder(dataset))
    return fabric_batches(fabric, view_batches(dataset, order, workers, fabric.device.type == "cuda"))


def fabric_batches(
    fabric: Fabric, batches: Iterable[Any], bring: Callable[[Any, torch.device], Batch] = Batch.to
) -> Iterator[Batch]:
    """Batches on the device; a GPU is brought the next one on a stream of its own, while it works on this one."""
    if fabric.device.type != "cuda":
        for batch in batches:
            yield bring(batch, fabric.device)
        return
    beside = torch.cuda.Stream(fabric.device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(beside):
            coming = bring(batch, fabric.device), beside.record_event()
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
