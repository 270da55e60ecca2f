"""Pretraining as a Task: a method on views of images without labels, from images to a trunk's weights."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from boxless.data.gpu_jpeg import require_gpu_decoder
from boxless.data.images import skipped_report
from boxless.data.index import ImageIndex
from boxless.data.sampler import make_sampler
from boxless.data.transforms.color import augment
from boxless.data.unlabelled import Batch, Proposals, ViewDataset, equally_wide, fill_resized, view_batches
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.geometry.view import View
from boxless.interop.weights import load_trunk, save_trunk
from boxless.methods.method import GroupedNorms, MethodOutput, MovingTarget
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.runs.run import Run, training_in, write_json
from boxless.tasks.compiling import compile_parts, compiling_pays
from boxless.tasks.schedule import PretrainSchedule, rates_in_words
from boxless.training.device import training_fabric, worker_count
from boxless.training.distributed import broadcast, check_same, gather_rows, merged, on_rank_zero, rank, world_size
from boxless.training.fit import fit
from boxless.training.health import Alarm, Health, HealthRecord, measure
from boxless.training.logger import MetricLogger
from boxless.training.memory import MicroBatches, OutOfMemory
from boxless.training.nan_guard import NonFiniteStep
from boxless.training.optim import make_optimizer, parameter_groups
from boxless.training.progress import say
from boxless.training.sync_norms import synchronize_norms

LEAST_LOADED = 0.99
"""Share of the backbone, and of each part that the start's weights hold, that must be loaded."""


class PretrainTask:
    """A trunk in a method: views of a batch give the method's loss; the result is the trunk's weights.

    Args:
        recipe: settings; the seed draws what no weights fill.
        fabric: device, precision and processes.
        out: folder of the run.
        index: images; None if only `build` and `loss` are called.
        proposals: boxes without labels, for methods that need them.
        init: weights to start from.
        quiet: print nothing.

    Attributes:
        trunk: the trained trunk.
        method: around the trunk.
        output: output of the last forward pass.
        health: measures of the embeddings.
        start: report of what `init` filled, or None.
    """

    title = "pretrain"
    evaluate_every: int | None = None
    module: nn.Module
    optimizer: Optimizer

    def __init__(
        self,
        recipe: PretrainRecipe,
        fabric: Fabric,
        out: Path,
        index: ImageIndex | None = None,
        proposals: Proposals | None = None,
        init: Path | None = None,
        quiet: bool = True,
    ) -> None:
        self.recipe, self.fabric, self.out, self.init, self.quiet = recipe, fabric, out, init, quiet
        self.index, self.proposals = index, proposals
        self.specs = recipe.method.views()
        self.schedule = PretrainSchedule.of(
            recipe, len(index) if index is not None else recipe.batch_size, world_size()
        )
        self.steps, self.batch = self.schedule.steps, self.schedule.batch
        # Norms, negatives and statistics are those of the whole batch.
        self.micro_batches = MicroBatches(self.batch // world_size())
        if recipe.compile is not None:
            self.compiled = recipe.compile
        else:
            self.compiled = fabric.device.type == "cuda" and compiling_pays(recipe, self.steps)
        mean, std = torch.tensor(recipe.trunk.mean), torch.tensor(recipe.trunk.std)
        self.mean, self.std = (t.view(1, 3, 1, 1).to(fabric.device, non_blocking=True) for t in (mean, std))
        self.health = HealthRecord()
        self.alarms: list[Alarm] = self.health.alarms
        self.skipped: dict[str, str] = {}
        self.start: str | None = None
        self.output = MethodOutput(torch.zeros(()), {})

    def build(self, fresh: bool = True) -> None:
        """Make trunk, method and optimizer; targets are copied after the weights are loaded, so they start alike."""
        recipe, device = self.recipe, self.fabric.device
        optim = recipe.optim
        say(rates_in_words(self.batch, optim.base_lr, optim.reference_batch, world_size()), self.quiet)
        if self.batch < recipe.batch_size:
            say(f"batch_size: {self.batch} (all images), not {recipe.batch_size}", self.quiet)
        torch.manual_seed(recipe.seed)
        self.trunk = Trunk(recipe.trunk)
        if self.init is not None and fresh:
            self.start = str(load_trunk(self.trunk, self.init, LEAST_LOADED))
            say(self.start, self.quiet)
        self.method = recipe.method.build(self.trunk)
        assert isinstance(self.method, nn.Module)
        module = self.method.to(device).to(memory_format=torch.channels_last)
        alone = world_size() == 1 or isinstance(recipe.method, GroupedNorms)  # which keep to parts of the batch
        self.module = module if alone else synchronize_norms(module)
        self.optimizer = make_pretrain_optimizer(self.module, recipe.optim)
        if self.compiled:
            say("compiling: the first steps take a minute or two", self.quiet)
            compile_parts(self.module, self.trunk)

    def learning_rate(self, step: int) -> float:
        """The schedule's rate."""
        return self.schedule.learning_rate(step)

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """This process's share of each step's images, on the device."""
        assert self.index is not None
        recipe = self.recipe
        dataset = ViewDataset(self.index, self.specs, self.proposals, recipe.seed)
        dataset[0, 0]  # if nothing can be read, this says so in one line; a worker would add its traceback
        share = self.batch // world_size()
        among = rank(), world_size()
        sampler = make_sampler(self.index, share, first, end, recipe.seed, *among, recipe.shard_buffer)
        workers = worker_count(recipe.workers, 16)
        batches = view_batches(dataset, sampler, workers, self.fabric.device, recipe.decoder)
        return equally_wide(batches) if recipe.method.needs_boxes and world_size() > 1 else batches

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[View, ...]:
        """The method's views of a batch (uint8), augmented and normalised on the device."""
        views = []
        for view, spec in zip(fill_resized(batch, self.specs), self.specs, strict=True):
            view = augment(view, spec.photometric, generator, self.compiled)
            image = view.image.sub_(self.mean).div_(self.std)
            views.append(view.with_image(image.contiguous(memory_format=torch.channels_last)))
        return tuple(views)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The method's loss and its terms."""
        self.skipped.update(dict(batch.skipped))
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        output: MethodOutput = module(self.views(batch, generator), batch.boxes, batch.valid, generator)
        self.output = output._replace(loss=output.loss.detach())  # no graph outlives its step
        return {"loss": output.loss, **output.terms}

    def after_step(self, step: int, log: MetricLogger) -> None:
        """Move the method's targets; from time to time measure the embeddings.

        Raises:
            UserError: the embeddings of all images have become the same.
        """
        recipe = self.recipe
        self.method.after_step(step, self.steps)
        if step % recipe.health_every and step + 1 < self.steps:
            return
        online, target = self.output.online, self.output.target
        if online is not None and target is not None:
            health = broadcast(measure(gather_rows(online), gather_rows(target)))
            self.health.add(step, health)
            log.write(step, {f"health/{name}": value for name, value in asdict(health).items()})
            log.status = self.health.verdict
        if isinstance(self.method, MovingTarget):
            log.write(step, {"momentum": self.method.momentum(step, self.steps)})
        if recipe.stop_on_collapse and self.health.collapsed_at is not None:
            raise UserError(
                f"{self.out}: stopped at step {step}, {self.health.verdict}; the last checkpoint is kept. "
                f"Lower optim.base_lr, raise method.momentum, or go on with stop_on_collapse=false\n"
                f"{self.health.report()}"
            )

    def evaluate(self) -> Mapping[str, float]:
        """Return no scores: the images have no labels."""
        return {}

    def state(self) -> dict[str, Any]:
        """The measures of the embeddings, and what the weights filled."""
        health = [(s, list(astuple(v))) for s, v in zip(self.health.steps, self.health.values, strict=True)]
        return {"health": health, "init": self.start}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.start = state.get("init")
        for step, values in state["health"]:
            self.health.add(step, Health(*values))

    def remedy(self, error: OutOfMemory | NonFiniteStep) -> str:
        """A batch that fits, or how to see where a NaN began."""
        if isinstance(error, OutOfMemory):
            from boxless.tasks.batch_size import batch_that_fits

            return batch_that_fits(self, error)
        from boxless.tasks.replay import keep

        kept = keep(self.out, error)
        return f"Lower optim.base_lr; to see where it began: boxless pretrain --replay {kept}"

    def finish(self, seconds: float) -> None:
        """Write the trunk's trained parts and the summary."""
        self.skipped.update(merged(self.skipped))
        weights = Run(self.out).weights

        def write() -> None:
            save_trunk(weights, self.trunk, self.parts)
            write_json(self.out / "summary.json", self._summary(seconds))

        on_rank_zero(write)
        say(self.health.report(), self.quiet)
        if self.skipped:
            say(skipped_report(self.skipped), self.quiet)
        say(f"weights: {weights} ({', '.join(self.parts)})", self.quiet)

    @property
    def parts(self) -> tuple[str, ...]:
        """The trunk's parts that are worth keeping: a backbone that was frozen belongs to what was trained on it."""
        return tuple(part for part in self.trunk.parts if part in ("backbone", *self.method.trains))

    def _summary(self, seconds: float) -> dict[str, Any]:
        images = self.steps * self.batch
        return {
            "method": self.recipe.method.name,
            "init": self.start or "random weights",
            "trains": list(self.method.trains),
            "steps": self.steps,
            "images_seen": images,
            "seconds": round(seconds, 1),
            "images_per_second": round(images / seconds, 2),
            "health": self.health.verdict,
            "health_report": self.health.report(),
            "skipped": self.skipped,
        }


def make_pretrain_optimizer(module: nn.Module, settings: PretrainOptim) -> Optimizer:
    """The optimiser of a pretraining, over everything that takes gradients."""
    groups = parameter_groups(module, settings.weight_decay)
    for group in groups:
        biases = group["params"][0].ndim <= 1
        group["lr_scale"] = settings.bias_lr_scale if biases else 1.0
        if biases and settings.adapt_biases and settings.name == "lars":
            group["weight_decay"] = settings.weight_decay
    return make_optimizer(settings.name, groups, settings.base_lr, settings.momentum, settings.adapt_biases)


def run_pretraining(
    recipe: PretrainRecipe,
    recipe_text: str,
    out: Path,
    index: ImageIndex,
    proposals: Proposals | None = None,
    init: Path | None = None,
    quiet: bool = False,
    allow_changes: bool = False,
) -> Run:
    """Pretrain in a folder, continuing what is there; see `boxless.pretrain`."""
    run, fabric, quiet = Run(out), training_fabric(recipe.precision), quiet or rank() > 0
    inputs = {
        "images": len(index),
        "data": index.fingerprint,
        "content": index.content,
        "init": str(init) if init else None,
    }
    check_same("data", f"{len(index)} images ({index.content})")
    with training_in(out, recipe_text, inputs, allow_changes, quiet) as unfinished:
        if unfinished:
            if recipe.decoder == "gpu":
                require_gpu_decoder(fabric.device)
            torch.backends.cudnn.benchmark = True  # views have few sizes: the fastest convolutions are found once
            fit(PretrainTask(recipe, fabric, out, index, proposals, init, quiet), run, fabric, quiet)
    return run


def check_start(recipe: PretrainRecipe, init: Path | None) -> None:
    """Build the trunk and the method, and load the weights, to find a mistake before hours of proposals.

    Raises:
        UserError: trunk, weights and method do not go together.
    """
    trunk = Trunk(recipe.trunk)
    if init is not None:
        load_trunk(trunk, init, LEAST_LOADED)
    recipe.method.build(trunk)
