"""Search for the number of images that fit into memory."""

from dataclasses import replace
from typing import TYPE_CHECKING

from boxless.data.unlabelled import Batch
from boxless.errors import is_out_of_memory
from boxless.geometry.view import View
from boxless.training.distributed import world_size
from boxless.training.memory import OutOfMemory, release

if TYPE_CHECKING:
    from boxless.tasks.pretrain import PretrainTask


def batch_that_fits(task: "PretrainTask", error: OutOfMemory) -> str:
    """Advice after a step of a pretraining did not fit, with the batch that fits.

    A pretraining's batch is not gone through in parts: its norms, negatives and statistics are those of the batch.
    """
    had = len(error.batch.valid)
    tried = _largest(task, error) if world_size() == 1 else None  # of several, the others are waiting
    if tried is None:
        fits = "give a smaller --batch-size"
    else:
        fits = f"{tried} fit, tried just now: give --batch-size {tried} in a new folder (the learning rate follows)"
    precision = ", --precision bf16-mixed" if task.recipe.precision == "32-true" else ""
    return f"{had} images do not fit; {fits}{precision} or smaller views"


def _largest(task: "PretrainTask", error: OutOfMemory) -> int | None:
    """The largest half, quarter, ... of a batch that a forward and backward pass has room for; None: none has."""
    images = len(error.batch.valid) // 2
    while images >= 2:
        try:
            with task.fabric.autocast():
                loss = task.loss(task.module, first_images(error.batch, images), error.step)["loss"]
            task.fabric.backward(loss)
            return images
        except Exception as again:
            if not is_out_of_memory(again):
                return None
        task.module.zero_grad(set_to_none=True)
        release()
        images //= 2
    return None


def first_images(batch: Batch, images: int) -> Batch:
    """The first images of a batch."""
    views = tuple(v and View(v.image[:images], v.from_source[:images]) for v in batch.views)
    return replace(batch, views=views, boxes=batch.boxes[:images], valid=batch.valid[:images])
