"""A pretraining run, from images to weights."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import SGD, AdamW, Optimizer

from boxless.data.fetching import image_order
from boxless.data.index import ImageIndex
from boxless.data.loader import Batch, Boxes, ViewDataset, fill_resized, view_batches
from boxless.data.photometric import augment
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.interop.weights import load_trunk, save_trunk
from boxless.methods.contract import MethodOutput, as_module
from boxless.methods.moco import MomentumContrast
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.runs.compiling import compile_parts, is_compiled
from boxless.runs.folder import Run, start_run, write_json
from boxless.runs.schedule import Plan, rates_in_words
from boxless.runs.setup import training_fabric, worker_count
from boxless.runs.weights import adopt
from boxless.training.distributed import gather_rows, rank, synchronize_norms, world_size
from boxless.training.health import HealthRecord, measure
from boxless.training.interruption import Interruption
from boxless.training.journal import Journal
from boxless.training.loggers import make_loggers
from boxless.training.loop import NonFiniteLoss, Progress, train
from boxless.training.optim import Lars, parameter_groups, warmup_cosine
from boxless.training.state import load_checkpoint, save_checkpoint
from boxless.training.turns import alone, check_same, largest, shared, united

LEAST_LOADED = 0.99
"""Share of the backbone, and of each part that the start's weights hold, that must be loaded."""


class Collapse(Exception):
    """The embeddings of all images have become the same."""


def with_trunk_of(recipe: PretrainRecipe, init: str | None) -> PretrainRecipe:
    """The recipe with what the weights that it starts from decide of its trunk, if they are of a run; see `adopt`."""
    return replace(recipe, trunk=adopt(recipe.trunk, init))


def check_start(recipe: PretrainRecipe, init: Path | None) -> None:
    """Build what the run will build, and load what it will load, to find a mistake before hours of proposals.

    Raises:
        UserError: where trunk, weights and method do not go together.
    """
    trunk = Trunk(recipe.trunk)
    if init is not None:
        load_trunk(trunk, init, LEAST_LOADED)
    recipe.method.build(trunk)


def run_pretraining(
    index: ImageIndex,
    boxes: Boxes | None,
    recipe: PretrainRecipe,
    recipe_text: str,
    out: Path,
    init: Path | None,
    quiet: bool,
) -> Run:
    """Pretrain in a folder, continuing what is there; see `boxless.pretrain`."""
    run = Run(out)
    fabric = training_fabric(recipe.precision)
    quiet = quiet or rank() > 0
    inputs = {"images": len(index), "data": index.fingerprint, "init": str(init) if init else None}
    check_same("data", f"{len(index)} images ({index.fingerprint})")
    with alone(lambda: start_run(out, recipe_text, inputs)) or nullcontext():
        if shared(run.finished):
            _say(f"{out}: this run is finished already", quiet)
        else:
            _pretrain(fabric, run, index, boxes, recipe, init, quiet)
    return run


def _pretrain(
    fabric: Fabric,
    run: Run,
    index: ImageIndex,
    boxes: Boxes | None,
    recipe: PretrainRecipe,
    init: Path | None,
    quiet: bool,
) -> None:
    out = run.path
    plan = Plan.of(recipe, len(index), world_size())
    _say(rates_in_words(plan.batch, recipe.optim.base_lr, recipe.optim.reference_batch, world_size()), quiet)
    torch.backends.cudnn.benchmark = True  # views have few sizes: the fastest convolutions are found once
    torch.manual_seed(recipe.seed)
    trunk = Trunk(recipe.trunk)
    state = shared(alone(lambda: load_checkpoint(out / "checkpoints")))
    start: str | None = state.get("init") if state else None
    if init is not None and state is None:  # a run that goes on has its weights, whatever the file now holds
        start = str(load_trunk(trunk, init, LEAST_LOADED))
        _say(start, quiet)
    method = recipe.method.build(trunk)  # targets are copied here, so they start from the same weights
    module = as_module(method).to(fabric.device).to(memory_format=torch.channels_last)
    if not isinstance(recipe.method, MomentumContrast):  # whose norms keep to parts of the batch
        module = synchronize_norms(module)
    optimizer = make_optimizer(module, recipe.optim)
    health, skipped, spent = HealthRecord(), {}, 0.0
    progress = Progress(0, plan.steps)
    if state is not None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        progress.step, spent = state["step"], state["seconds"]
        skipped.update(state["skipped"])
        for step, values in state["health"]:
            health.add(step, type(measure(torch.eye(4), torch.eye(4)))(*values))
        _say(f"{out}: continuing at step {progress.step} of {plan.steps}", quiet)
    compiled = is_compiled(recipe, plan.steps, fabric.device)
    if compiled:
        _say("compiling: the first steps take a minute or two", quiet)
        compile_parts(module, trunk)
    placed, optimizer = fabric.setup(module, optimizer)
    dataset = ViewDataset(index, recipe.method.views(), boxes, recipe.seed)
    dataset[0, 0]  # where nothing can be read, this says so in one line; a worker's error would come with its traceback
    own = plan.batch // world_size()
    places = progress.step, plan.steps, recipe.seed, recipe.shard_buffer, rank(), world_size()
    order = image_order(index, own, *places)
    workers = worker_count(recipe.workers, 16)
    written = out if rank() == 0 else None
    loggers = make_loggers(recipe.loggers, out, asdict(recipe))
    journal = Journal(
        written, progress.step, plan.steps, recipe.seed, plan.batch, title="pretrain", quiet=quiet, loggers=loggers
    )
    if len(index) < recipe.batch_size:
        _say(f"batch_size: {plan.batch} (all images), not {recipe.batch_size}", quiet)
    objective = Objective(fabric, placed, recipe, skipped, compiled)
    began = time.monotonic()

    def save() -> None:
        skipped.update(united(skipped))
        content = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "health": [(s, list(vars(v).values())) for s, v in zip(health.steps, health.values, strict=True)],
            "skipped": skipped,
            "init": start,
            "seconds": spent + time.monotonic() - began,
        }
        alone(lambda: save_checkpoint(out / "checkpoints", progress.step, content))

    def after_step(step: int) -> None:
        method.after_step(step, plan.steps)
        if step % recipe.health_every == 0 or step + 1 == plan.steps:
            output = objective.output
            if output.online is not None and output.target is not None:
                health.add(step, shared(measure(gather_rows(output.online), gather_rows(output.target))))
                journal.write(step, {f"health/{name}": value for name, value in vars(health.values[-1]).items()})
                journal.status = health.verdict
            momentum = getattr(method, "momentum", None)  # of a target that follows
            if momentum is not None:
                journal.write(step, {"momentum": momentum(step, plan.steps)})
            if recipe.stop_on_collapse and health.collapsed_at is not None:
                raise Collapse

    batches: Iterable[Batch] = view_batches(dataset, order, workers, fabric.device.type == "cuda")
    if recipe.method.needs_boxes and world_size() > 1:
        batches = equally_wide(batches)
    stop = Interruption()
    try:
        with stop:
            train(
                fabric,
                placed,
                optimizer,
                fabric_batches(fabric, batches),
                objective,
                partial(warmup_cosine, **plan.learning_rates(recipe.optim)),
                progress,
                journal,
                after_step,
                save,
                recipe.checkpoint_every,
                recipe.optim.clip_norm,
                stop=stop,
            )
    except Collapse:
        raise UserError(
            f"{out}: stopped at step {progress.step}, {health.verdict}; the last checkpoint is kept. "
            f"Lower optim.base_lr, raise method.momentum, or go on with stop_on_collapse=false\n{health.report()}"
        ) from None
    except NonFiniteLoss as error:
        raise UserError(f"{out}: stopped, {error}; the last checkpoint is kept. Lower optim.base_lr") from None
    finally:
        journal.close()
    if progress.step < plan.steps:
        raise stop.unfinished(out, progress.step, plan.steps)
    # A backbone that was frozen belongs to what was trained on it.
    parts = tuple(part for part in trunk.parts if part in ("backbone", *method.trains))
    seconds = spent + time.monotonic() - began
    skipped.update(united(skipped))
    summary = {
        "method": recipe.method.name,
        "init": start or "random weights",
        "trains": list(method.trains),
        "steps": plan.steps,
        "images_seen": plan.steps * plan.batch,
        "seconds": round(seconds, 1),
        "images_per_second": round(plan.steps * plan.batch / seconds, 2),
        "health": health.verdict,
        "health_report": health.report(),
        "skipped": skipped,
    }

    def finish() -> None:
        save_trunk(run.weights, trunk, parts)
        write_json(out / "summary.json", summary)

    alone(finish)
    _say(health.report(), quiet)
    if skipped:
        _say(skipped_report(skipped), quiet)
    _say(f"weights: {run.weights} ({', '.join(parts)})", quiet)


class Objective:
    """A batch to a loss: views to the device, augmentation, the method's forward pass."""

    def __init__(
        self,
        fabric: Fabric,
        method: nn.Module,
        recipe: PretrainRecipe,
        skipped: dict[str, str],
        compiled: bool = False,
    ) -> None:
        self.fabric, self.method, self.recipe, self.skipped = fabric, method, recipe, skipped
        self.specs, self.compiled = recipe.method.views(), compiled
        mean, std = torch.tensor(recipe.trunk.mean), torch.tensor(recipe.trunk.std)
        self.mean, self.std = (t.view(1, 3, 1, 1).to(fabric.device, non_blocking=True) for t in (mean, std))
        self.output = MethodOutput(torch.zeros(()), {})

    def __call__(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The method's scalars for a batch."""
        self.skipped.update(dict(batch.skipped))
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        views = []
        for view, spec in zip(fill_resized(batch, self.specs), self.specs, strict=True):
            view = augment(view, spec.photometric, generator, self.compiled)
            image = view.image.sub_(self.mean).div_(self.std)
            views.append(view.with_image(image.contiguous(memory_format=torch.channels_last)))
        self.output = self.method(tuple(views), batch.boxes, batch.valid, generator)
        return {"loss": self.output.loss, **self.output.terms}


def make_optimizer(module: nn.Module, settings: PretrainOptim) -> Optimizer:
    """The optimiser of a pretraining over everything that takes gradients."""
    groups = parameter_groups(module, settings.weight_decay)
    for group in groups:
        group["lr_scale"] = settings.bias_lr_scale if group["params"][0].ndim <= 1 else 1.0
    if settings.name == "lars":
        return Lars(groups, settings.base_lr, settings.momentum, adapt_biases=settings.adapt_biases)
    if settings.name == "sgd":
        return SGD(groups, lr=settings.base_lr, momentum=settings.momentum, foreach=True)
    return AdamW(groups, lr=settings.base_lr, fused=None if torch.cuda.is_available() else True)


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


def skipped_report(skipped: Mapping[str, str]) -> str:
    """Images that could not be read, counted and listed."""
    lines = [f"  {path}: {reason}" for path, reason in sorted(skipped.items())[:20]]
    more = f"\n  ... and {len(skipped) - 20} more" if len(skipped) > 20 else ""
    return f"{len(skipped)} images could not be read and were left out:\n" + "\n".join(lines) + more


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
