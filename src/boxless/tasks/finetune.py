"""A fine-tuning run, from labels to a detector and its AP."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from boxless.data.annotations.read import LabelledData
from boxless.data.annotations.select import fingerprint, labels_digest, targets_digest
from boxless.data.detection import DetectionDataset, DetectionSample, detection_batches
from boxless.data.sampler import repeat_factors
from boxless.data.unlabelled import Order
from boxless.detectors.build import build_detector, build_trunk, fitting
from boxless.detectors.trunk import Trunk, freeze
from boxless.errors import Unfinished, UserError
from boxless.evaluation.average_precision import Scores, check_federated
from boxless.evaluation.mean_iou import SegmentationScores
from boxless.files import sha256_of, written
from boxless.interop.weights import WeightsReport, load_trunk
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.runs.run import Run, start_run, write_json
from boxless.runs.weights import adopt, trunk_of
from boxless.tasks.detect import check_keypoints
from boxless.tasks.evaluate import evaluate_detector, known, score_table
from boxless.tasks.labels import choose_labels
from boxless.tasks.learner import skipped_report
from boxless.tasks.schedule import Schedule, check_divides, rates_in_words
from boxless.tasks.segment import check_sizes, training_set
from boxless.training.checkpoint import fitting as fitting_state
from boxless.training.checkpoint import load_checkpoint, restore_optimizer, save_checkpoint
from boxless.training.device import training_fabric, worker_count
from boxless.training.distributed import rank, synchronize_norms, world_size
from boxless.training.faults import mishaps
from boxless.training.fit import Progress, kept_scale, restore_scale, train
from boxless.training.logger import Journal
from boxless.training.loggers import make_loggers
from boxless.training.memory import OutOfMemory
from boxless.training.nan_guard import NonFiniteStep
from boxless.training.optim import parameter_groups
from boxless.training.precise_bn import estimate_norms
from boxless.training.progress import say
from boxless.training.rank_zero import alone, check_same, shared, united
from boxless.training.signals import Interruption

HOPELESS = 20
"""Images that end a run where they are the first and none of them can be used."""


def with_trunk_of(recipe: FinetuneRecipe, weights: str | None) -> FinetuneRecipe:
    """The recipe with what weights of a run, a pretraining or a fine-tuning, decide of the trunk; see `adopt`."""
    source = trunk_of(weights)
    if source is None:
        return recipe
    neck = "c4" if recipe.trunk.neck == "c4" else source.neck  # any ResNet fills a C4 detector
    return replace(recipe, trunk=replace(adopt(recipe.trunk, weights), neck=neck))


def with_fitting_neck(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The recipe with the neck that its detector needs, whatever the trunk had that its weights are of."""
    return replace(recipe, trunk=fitting(recipe.trunk, recipe.detector))


def run_finetuning(
    data: LabelledData,
    val: LabelledData,
    recipe: FinetuneRecipe,
    recipe_text: str,
    out: Path,
    weights: Path | None,
    quiet: bool,
    allow_changes: bool = False,
) -> Run:
    """Fine-tune in a folder, continuing what is there; see `boxless.finetune`."""
    run = Run(out)
    fabric = training_fabric(recipe.precision)
    quiet = quiet or rank() > 0
    inputs = {
        "data": data.origin,
        "labels": labels_digest(data.images),
        "val": val.origin,
        "val_labels": labels_digest(val.images),
        "targets": " ".join(targets_digest(each, recipe.detector.kind) for each in (data, val)),
        "weights": str(weights) if weights else None,
        "weights_sha256": sha256_of(weights) if weights else None,
    }
    with mishaps(out), alone(lambda: start_run(out, recipe_text, inputs, allow_changes)) or nullcontext():
        if shared(run.finished):
            say(f"{out}: this run is finished already", quiet)
        else:
            _finetune(fabric, run, data, val, recipe, weights, quiet)
    return run


def _finetune(
    fabric: Fabric,
    run: Run,
    data: LabelledData,
    val: LabelledData,
    recipe: FinetuneRecipe,
    weights: Path | None,
    quiet: bool,
) -> None:
    out = run.path
    check_divides(recipe.batch_size, world_size(), 1 if recipe.accumulate == "auto" else recipe.accumulate)
    check_sizes(recipe)
    chosen = choose_labels(data, recipe)
    masks = recipe.detector.kind == "mask_rcnn"
    if masks and not chosen.has_masks:
        raise UserError(f"{data.origin}: detector.kind=mask_rcnn needs masks and these labels have boxes only")
    if recipe.detector.kind == "keypoint_rcnn" and not chosen.has_keypoints:
        raise UserError(f"{data.origin}: detector.kind=keypoint_rcnn needs keypoints and these labels have none")
    check_keypoints(val, data.skeleton, recipe)
    if recipe.metric == "lvis":
        check_federated(val)
    choice = _label_choice(chosen, recipe)
    check_same("data", f"{len(chosen)} images ({choice['sha256'][:16]})")
    alone(lambda: write_json(out / "labels.json", choice))
    say(f"learning from {len(chosen)} of {len(data)} images; SHA-256 of their ids: {choice['sha256']}", quiet)
    say(rates_in_words(recipe.batch_size, recipe.optim.lr, recipe.optim.reference_batch, world_size()), quiet)
    torch.manual_seed(recipe.seed)
    trunk = build_trunk(recipe.trunk, recipe.detector)
    report = None
    if weights is not None:
        report = load_trunk(trunk, weights, recipe.min_loaded)
        say(str(report), quiet)
    freeze(trunk, recipe.freeze)
    detector = build_detector(trunk, len(data.classes), recipe.detector, len(data.skeleton.names))
    detector = detector.to(fabric.device).to(memory_format=torch.channels_last)
    if recipe.trunk.norm == "sync":
        detector = synchronize_norms(detector)
    optimizer = make_optimizer(detector, trunk, recipe.optim)
    repeats = repeat_factors(chosen, recipe.repeat_threshold) if recipe.repeat_threshold else None
    schedule = Schedule.of(recipe, len(chosen) if repeats is None else round(float(repeats.sum())))
    progress, spent = Progress(0, schedule.steps), 0.0
    state = shared(alone(lambda: load_checkpoint(out / "checkpoints")))
    if state is not None:
        with fitting_state(out):
            detector.load_state_dict(state["module"])
            restore_optimizer(optimizer, state["optimizer"])
        restore_scale(fabric, state)
        progress.step, spent = state["step"], state["seconds"]
        say(f"{out}: continuing at step {progress.step} of {schedule.steps}", quiet)
    placed, optimizer = fabric.setup(detector, optimizer)
    workers = worker_count(recipe.workers, 8)
    dataset: Dataset[DetectionSample] = (
        training_set(chosen, recipe)
        if recipe.detector.kind == "fcn"
        else DetectionDataset(chosen, recipe.min_size, recipe.max_size, True, masks, recipe.seed, recipe.random_crop)
    )

    def batches(first: int, end: int) -> DataLoader[list[DetectionSample]]:
        """Those of this process for some of the steps."""
        own = schedule.batch // world_size()
        order = Order(len(chosen), own, first, end, recipe.seed, rank(), world_size(), repeats)
        return detection_batches(dataset, order, workers)

    mine = rank() == 0  # to write
    loggers = make_loggers(recipe.loggers, out, asdict(recipe)) if mine else []
    where, begin = out if mine else None, progress.step
    journal = Journal(
        where, begin, schedule.steps, recipe.seed, schedule.batch, title="finetune", quiet=quiet, loggers=loggers
    )
    objective = Objective(fabric, placed, recipe, len(chosen))
    if state is not None:
        objective.restore(state)
    look_every = recipe.evaluate_every or max(1, schedule.steps // 5)
    began = time.monotonic()

    def seconds() -> float:
        return spent + time.monotonic() - began

    def save() -> None:
        tensors = {"module": detector.state_dict(), "optimizer": optimizer.state_dict()}
        objective.skipped.update(united(objective.skipped))
        content = {**tensors, **kept_scale(fabric), **objective.content(), "seconds": seconds()}
        alone(lambda: save_checkpoint(out / "checkpoints", progress.step, content))

    stop = Interruption()

    def smaller() -> bool:
        more = objective.split()
        if more:
            at_a_time = f"{objective.accumulate} parts, {objective.fewest} image(s) at a time"
            say(f"memory is short: from step {progress.step} on each batch is gone through in {at_a_time}", quiet)
        return more

    def look(step: int) -> None:
        try:
            with stop.at_once():
                scores, _ = evaluate_detector(fabric, detector, val, recipe, workers)
        except Unfinished:  # the run ends after this step
            return
        values = known(next(iter(scores.values())).as_dict())
        journal.write(step, {f"val/{name}": value for name, value in values.items()})
        journal.status = "".join(f"val {name} {value:.1%}" for name, value in list(values.items())[:1])

    def after_step(step: int) -> None:
        if (step + 1) % look_every == 0 and step + 1 < schedule.steps:
            alone(lambda: look(step))

    try:
        with stop:
            train(
                fabric,
                placed,
                optimizer,
                batches(begin, schedule.steps),
                objective,
                schedule.learning_rate,
                progress,
                journal,
                after_step,
                save,
                recipe.checkpoint_every,
                recipe.optim.clip_norm,
                objective.parts,
                stop,
                smaller if recipe.accumulate == "auto" else None,
            )
            if begin < progress.step == schedule.steps:
                save()  # to measure the detector may take long
    except OutOfMemory as error:
        raise UserError(f"{out}: {error}, with {objective.fewest} images at a time; {_need_less(recipe)}") from None
    except NonFiniteStep as error:
        raise UserError(f"{out}: stopped, {error}; the last checkpoint is kept. Lower optim.lr") from None
    finally:
        journal.close()
    if progress.step < schedule.steps:
        raise stop.unfinished(out, progress.step, schedule.steps)

    def finish() -> None:
        save_detector(run.weights, detector)
        scores, skipped = evaluate_detector(fabric, detector, val, recipe, workers, out)
        summary = _summary(recipe, chosen, schedule, report, scores, skipped, seconds())
        write_json(out / "summary.json", {**summary, "skipped_in_training": objective.skipped})
        say(score_table(scores), quiet)
        for what, left_out in (("labelled images", objective.skipped), ("images of --val", skipped)):
            if left_out:
                say(skipped_report(left_out, what), quiet)
        say(f"detector: {run.weights}; classes and label choice: {out / 'labels.json'}", quiet)

    try:
        with stop, stop.at_once():
            if recipe.precise_norms:
                say(f"estimating the statistics of norms from {recipe.precise_norms} batches", quiet)
                after = schedule.steps
                torch.manual_seed(recipe.seed)
                further = batches(after, after + recipe.precise_norms)
                parts = (part for batch in further for part in objective.parts(batch))
                estimate_norms(detector, parts, lambda part: objective(part, after))
            alone(finish)
    except Unfinished:
        raise stop.unfinished(out, progress.step, schedule.steps) from None


class Objective:
    """A batch of samples to the detector's losses; `images`: how many there are to learn from."""

    def __init__(self, fabric: Fabric, detector: nn.Module, recipe: FinetuneRecipe, images: int) -> None:
        self.fabric, self.detector, self.recipe = fabric, detector, recipe
        self.accumulate = 1 if recipe.accumulate == "auto" else recipe.accumulate
        self.batch = recipe.batch_size // world_size()
        self.skipped: dict[str, str] = {}
        self._hopeless, self._usable, self._unusable = min(images, HOPELESS), 0, 0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.skipped.update(state.get("skipped", {}))
        if self.recipe.accumulate == "auto":  # parts no larger than those that fitted, for any number of processes
            fewest = max(1, state.get("fewest", self.batch))
            self.accumulate = next(parts for parts in _divisors(self.batch) if self.batch // parts <= fewest)

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"fewest": self.fewest, "skipped": self.skipped}

    def __call__(self, samples: list[DetectionSample], step: int) -> Mapping[str, Tensor]:
        """torchvision's losses and their sum.

        Raises:
            UserError: none of the first images can be used.
        """
        skipped = [sample.skipped for sample in samples if sample.skipped is not None]
        self.skipped.update(skipped)
        self._unusable += len(skipped)
        self._usable += len(samples) - len(skipped)
        if not self._usable and self._unusable >= self._hopeless:
            path, reason = skipped[0]
            raise UserError(f"{path}: {reason}; none of the first {self._unusable} images can be used: check the data")
        device = self.fabric.device
        images = [sample.image.to(device, non_blocking=True).float() / 255 for sample in samples]
        targets = [{k: v.to(device, non_blocking=True) for k, v in sample.target.items()} for sample in samples]
        losses: dict[str, Tensor] = self.detector(images, targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def parts(self, samples: list[DetectionSample]) -> list[list[DetectionSample]]:
        """A batch in equal parts, for memory."""
        size = self.fewest
        return [samples[first : first + size] for first in range(0, len(samples), size)]

    @property
    def fewest(self) -> int:
        """Images of a part."""
        return self.batch // self.accumulate

    def split(self) -> bool:
        """Take the next larger number of equal parts; whether there is one."""
        more = (parts for parts in _divisors(self.batch) if parts >= 2 * self.accumulate)
        self.accumulate, before = next(more, self.accumulate), self.accumulate
        return self.accumulate > before


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _need_less(recipe: FinetuneRecipe) -> str:
    if world_size() > 1:
        return "give a larger --accumulate, or smaller images (--min-size, --max-size)"
    if recipe.accumulate == "auto":
        return "give smaller images (--min-size, --max-size) or close other programs"
    return "give --accumulate auto, which goes through each batch in parts that fit"


def make_optimizer(detector: nn.Module, trunk: Trunk, settings: FinetuneOptim) -> Optimizer:
    """The optimiser over everything that is not frozen; the body's stages have rates of their own."""
    groups: list[dict[str, Any]] = []
    in_body: set[int] = set()
    for depth, modules in enumerate(trunk.stages):
        stage = nn.ModuleList(modules)
        in_body |= {id(p) for p in stage.parameters()}
        scale = settings.body_lr_scale * settings.layer_decay ** (len(trunk.stages) - depth)
        groups += [{**group, "lr_scale": scale} for group in parameter_groups(stage, settings.weight_decay)]
    for group in parameter_groups(detector, settings.weight_decay):
        rest = [p for p in group["params"] if id(p) not in in_body]
        groups += [{**group, "params": rest, "lr_scale": 1.0}] if rest else []
    if settings.name == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)
    return AdamW(groups, lr=settings.lr, fused=None if torch.cuda.is_available() else True)


def _label_choice(chosen: LabelledData, recipe: FinetuneRecipe) -> dict[str, Any]:
    skeleton = {"skeleton": asdict(chosen.skeleton)} if recipe.detector.kind == "keypoint_rcnn" else {}
    return {
        "classes": chosen.classes,
        **skeleton,
        "choice": "list" if recipe.label_list is not None else recipe.label_choice,
        "seed": recipe.label_seed,
        "sha256": fingerprint(chosen.images),
        "images": [image.image_id for image in chosen.images],
    }


def save_detector(path: Path, detector: nn.Module) -> None:
    """All of a detector's weights as safetensors, atomically."""
    from safetensors.torch import save_file

    with written(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in detector.state_dict().items()}, partial)


def _summary(
    recipe: FinetuneRecipe,
    chosen: LabelledData,
    schedule: Schedule,
    report: WeightsReport | None,
    scores: Mapping[str, Scores | SegmentationScores],
    skipped: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    return {
        "detector": recipe.detector.kind,
        "labelled_images": len(chosen),
        "steps": schedule.steps,
        "seconds": round(seconds, 1),
        "weights": str(report) if report else "from scratch",
        "scores": {kind: result.as_dict() for kind, result in scores.items()},
        "per_class": {kind: result.per_class for kind, result in scores.items()},
        "skipped": dict(skipped),
    }
