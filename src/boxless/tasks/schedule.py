"""Number of steps and learning rates of a run, from a recipe and a number of images."""

from dataclasses import dataclass

from boxless.errors import UserError
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.training.optim import warmup_cosine, warmup_flat_cosine, warmup_multistep, warmup_polynomial


@dataclass(frozen=True)
class PretrainSchedule:
    """A pretraining's length and learning rates, in steps; `batch` is that of all processes."""

    batch: int
    steps: int
    warmup: int
    start: float
    peak: float
    final: float

    @staticmethod
    def of(recipe: PretrainRecipe, images: int, processes: int = 1) -> "PretrainSchedule":
        """The schedule for a number of images."""
        check_divides(recipe.batch_size, processes)
        batch = min(recipe.batch_size, images // processes * processes)
        if batch < 2:
            raise UserError(f"batch_size: {batch} image(s) in a batch; batch norms need at least 2; give more images")
        optim, per_epoch = recipe.optim, images // batch
        steps = max(1, round(recipe.epochs * per_epoch))
        warmup = min(round(optim.warmup_epochs * per_epoch), steps // 10)
        scale = batch / optim.reference_batch
        peak = optim.base_lr * scale
        return PretrainSchedule(
            batch, steps, warmup, peak * optim.warmup_start, peak, min(peak, optim.final_lr * scale)
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: a warm-up, then a cosine."""
        return warmup_cosine(step, self.steps, self.warmup, self.peak, self.start, self.final)


@dataclass(frozen=True)
class FinetuneSchedule:
    """A fine-tuning's length and learning rates, in steps; `final` is where a polynomial or cosine ends."""

    batch: int
    steps: int
    warmup: int
    warmup_start: float
    milestones: tuple[int, ...]
    peak: float
    drop_factor: float
    final: float
    shape: str

    @staticmethod
    def of(recipe: FinetuneRecipe, images: int) -> "FinetuneSchedule":
        """The schedule for a number of labelled images; a data set smaller than a batch is gone through repeatedly."""
        steps = recipe.iterations
        if steps is None:
            steps = max(1, round(recipe.epochs * images / recipe.batch_size))
        optim, scale = recipe.optim, recipe.batch_size / recipe.optim.reference_batch
        return FinetuneSchedule(
            recipe.batch_size,
            steps,
            min(optim.warmup_iterations, steps // 10),
            optim.warmup_start,
            tuple(round(share * steps) for share in optim.drops),
            optim.lr * scale,
            optim.drop_factor,
            optim.final_lr * scale,
            optim.schedule,
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        warmup, start, peak = self.warmup, self.warmup_start, self.peak
        if self.shape == "polynomial":
            return warmup_polynomial(step, self.steps, warmup, start, peak=peak, final=self.final)
        if self.shape == "cosine":
            return warmup_flat_cosine(step, self.steps, warmup, start, peak, min(peak, self.final))
        return warmup_multistep(step, self.milestones, warmup, start, self.drop_factor, peak)


def check_divides(batch: int, processes: int, parts: int = 1) -> None:
    """Check that a batch can be divided evenly among processes, and each share into equal parts.

    Raises:
        UserError: naming the key.
    """
    if parts < 1 or batch % parts:
        raise UserError(f"accumulate: {parts}; expected a divisor of batch_size, {batch}")
    if batch % (processes * parts):
        split = f"{processes} processes" + (f" x {parts} parts (accumulate)" if parts > 1 else "")
        raise UserError(f"batch_size: {batch} images cannot be divided evenly among {split}; use a multiple of them")


def rates_in_words(batch: int, lr: float, reference: int, processes: int) -> str:
    """Describe the division of the batch and the learning rate that follows from its size.

    `2 processes x 8 images = batch 16; peak rate 0.0625 = 1.0 x 16 / 256`.
    """
    shares = f"{processes} processes x {batch // processes} images = " if processes > 1 else ""
    return f"{shares}batch {batch}; peak rate {lr * batch / reference:g} = {lr} x {batch} / {reference}"
