"""How many images fit into memory, by trying fewer and fewer."""

from dataclasses import replace

from boxless.data.unlabelled import Batch
from boxless.errors import is_out_of_memory
from boxless.geometry.view import View
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.objective import Objective
from boxless.training.distributed import world_size
from boxless.training.memory import OutOfMemory, release


def need_less(objective: Objective, error: OutOfMemory, recipe: PretrainRecipe) -> str:
    """What to do where a step of a pretraining did not fit, in words, with the batch that fits.

    A pretraining's batch is not gone through in parts: its norms, negatives and statistics are those of the batch.
    """
    had = len(error.batch.valid)
    tried = largest(objective, error) if world_size() == 1 else None  # of several, the others are waiting
    if tried is None:
        fits = "give a smaller --batch-size"
    else:
        fits = f"{tried} fit, tried just now: give --batch-size {tried} in a new folder (the learning rate follows)"
    precision = ", --precision bf16-mixed" if recipe.precision == "32-true" else ""
    return f"{had} images do not fit; {fits}{precision} or smaller views"


def largest(objective: Objective, error: OutOfMemory) -> int | None:
    """The largest half, quarter, ... of a batch that a forward and backward pass has room for; None where none has."""
    images = len(error.batch.valid) // 2
    while images >= 2:
        try:
            objective.fabric.backward(objective(first(error.batch, images), error.step)["loss"])
            return images
        except Exception as again:
            if not is_out_of_memory(again):
                return None
        objective.method.zero_grad(set_to_none=True)
        release()
        images //= 2
    return None


def first(batch: Batch, images: int) -> Batch:
    """The first images of a batch."""
    views = tuple(v and View(v.image[:images], v.from_source[:images]) for v in batch.views)
    return replace(batch, views=views, boxes=batch.boxes[:images], valid=batch.valid[:images])
