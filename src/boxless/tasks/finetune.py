"""Fine-tuning as a Task: from labelled images to a detector and its AP."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from boxless.data.annotations.read import LabelledData
from boxless.data.annotations.select import fingerprint, labels_digest, targets_digest
from boxless.data.annotations.shots import boxes_digest, boxes_to_learn, objects_per_class
from boxless.data.dataloader import make_loader
from boxless.data.detection import AugmentConfig, DetectionDataset, DetectionSample
from boxless.data.images import skipped_report
from boxless.data.index import ImageIndex
from boxless.data.sampler import RepeatFactorSampler, TrainingSampler, repeat_factors
from boxless.data.segmentation import CropConfig, SegmentationDataset
from boxless.detectors.detector import build_trunk
from boxless.detectors.trunk import Trunk, freeze
from boxless.errors import UserError
from boxless.evaluation.average_precision import Scores, check_federated
from boxless.evaluation.mean_iou import SegmentationScores
from boxless.files import sha256_of, written
from boxless.interop.heads import Names, load_heads
from boxless.interop.weights import WeightsReport, load_trunk
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.runs.run import Run, training_in, write_json
from boxless.runs.weights import names_of
from boxless.tasks.evaluate import check_keypoints, evaluate_detector, known, score_table
from boxless.tasks.labels import choose_labels, missing_classes, missing_in_words, shots_in_words
from boxless.tasks.schedule import FinetuneSchedule, check_divides, rates_in_words
from boxless.training.device import training_fabric, worker_count
from boxless.training.distributed import check_same, merged, on_rank_zero, rank, world_size
from boxless.training.ema import WeightAverage
from boxless.training.fit import fit
from boxless.training.health import Alarm
from boxless.training.logger import MetricLogger
from boxless.training.memory import MicroBatches, OutOfMemory
from boxless.training.nan_guard import NonFiniteStep
from boxless.training.optim import make_optimizer, parameter_groups
from boxless.training.precise_bn import estimate_norms
from boxless.training.progress import say
from boxless.training.sync_norms import synchronize_norms

HOPELESS = 20
"""Images that end a run if they are the first and none of them can be used."""


class DetectTask:
    """A detector on labelled images: torchvision's losses, AP on validation images.

    Args:
        recipe: settings; the seed draws what no weights fill.
        fabric: device, precision and processes.
        out: folder of the run.
        data: labels to choose from.
        val: labels to measure with.
        weights: file to start from.
        quiet: print nothing.

    Attributes:
        chosen: the labels to learn from.
        trunk: in the detector, which is `module`.

    Raises:
        UserError: recipe and labels do not go together.
    """

    title = "finetune"
    module: nn.Module
    optimizer: Optimizer

    def __init__(
        self,
        recipe: FinetuneRecipe,
        fabric: Fabric,
        out: Path,
        data: LabelledData,
        val: LabelledData,
        weights: Path | None = None,
        quiet: bool = True,
    ) -> None:
        self.recipe, self.fabric, self.out, self.quiet = recipe, fabric, out, quiet
        self.val, self.weights = val, weights
        check_divides(recipe.batch_size, world_size(), 1 if recipe.accumulate == "auto" else recipe.accumulate)
        self.share = recipe.batch_size // world_size()
        self.micro_batches = MicroBatches(self.share, recipe.accumulate)
        self.check_sizes()
        self.all, self.chosen = data, choose_labels(data, recipe)
        self.missing = missing_classes(self.chosen, val)  # none of pixels
        self._check_labels()
        repeated = recipe.repeat_threshold > 0
        self.repeats = repeat_factors(self.chosen, recipe.repeat_threshold) if repeated else None
        seen = len(self.chosen) if self.repeats is None else round(float(self.repeats.sum()))
        self.schedule = FinetuneSchedule.of(recipe, seen)
        self.steps, self.batch = self.schedule.steps, self.schedule.batch
        self.evaluate_every: int | None = recipe.evaluate_every or max(1, self.steps // 5)
        self.workers = worker_count(recipe.workers, 8)
        self.alarms: list[Alarm] = []
        self.skipped: dict[str, str] = {}
        self.report: WeightsReport | None = None
        self._usable = self._unusable = 0

    def check_sizes(self) -> None:
        """Refuse settings that only segmentation has.

        Raises:
            UserError: naming the key.
        """
        recipe, kind = self.recipe, self.recipe.detector.kind
        if recipe.crop != CropConfig():
            raise UserError(f"crop: only detector.kind=fcn crops by it, this is {kind}; leave it as it is")
        if not recipe.min_size:
            raise UserError("min_size: empty; only detector.kind=fcn takes images as large as they are on disk")

    def _check_labels(self) -> None:
        targets, data = self.recipe.detector.targets, self.chosen
        if targets == "masks" and not data.has_masks:
            raise UserError(f"{data.origin}: detector.kind=mask_rcnn needs masks and these labels have boxes only")
        if targets == "keypoints" and not data.has_keypoints:
            raise UserError(f"{data.origin}: detector.kind=keypoint_rcnn needs keypoints and these labels have none")
        check_keypoints(self.val, data.skeleton, self.recipe)
        if self.recipe.metric == "lvis":
            check_federated(self.val)

    def build(self, fresh: bool = True) -> None:
        """Make trunk, detector and optimizer, with all of the weights loaded that fit."""
        recipe = self.recipe
        self._write_labels()
        torch.manual_seed(recipe.seed)
        self.trunk = build_trunk(recipe.trunk, recipe.detector)
        if self.weights is not None:
            self.report = load_trunk(self.trunk, self.weights, recipe.min_loaded)
        freeze(self.trunk, recipe.freeze)
        keypoints = len(self.all.skeleton.names)
        detector = recipe.detector.build(self.trunk, len(self.all.classes), keypoints)
        self._load_heads(detector)
        detector = detector.to(self.fabric.device).to(memory_format=torch.channels_last)
        synchronized = recipe.trunk.norm == "sync" and world_size() > 1
        self.module = synchronize_norms(detector) if synchronized else detector
        self.optimizer = make_detector_optimizer(self.module, self.trunk, recipe.optim)
        self.average = self.make_average(recipe.ema) if recipe.ema else None

    def make_average(self, share: float) -> WeightAverage:
        """The average of the module's weights over a share of the run, at its start."""
        return WeightAverage(self.module, max(1, round(share * self.steps)))

    def _load_heads(self, detector: nn.Module) -> None:
        """Load what the weights have beside the trunk, rows of classes by name, and say what was loaded."""
        if self.report is None or self.weights is None:
            return
        own = Names(self.all.classes, self.all.skeleton.names)
        self.report = load_heads(detector, self.trunk, self.report, self.recipe.min_loaded, own, names_of(self.weights))
        say(str(self.report), self.quiet)

    def _write_labels(self) -> None:
        """Write down which images were chosen, the same on all processes."""
        recipe, chosen = self.recipe, self.chosen
        sha256 = fingerprint(chosen.images)
        check_same("data", f"{len(chosen)} images ({sha256[:16]})")
        skeleton = {"skeleton": asdict(chosen.skeleton)} if recipe.detector.targets == "keypoints" else {}
        choice: dict[str, Any] = {
            "classes": chosen.classes,
            **skeleton,
            "choice": "list" if recipe.label_list is not None else recipe.label_choice,
            "seed": recipe.label_seed,
            "sha256": sha256,
            "images": [image.image_id for image in chosen.images],
            "objects": objects_per_class(chosen),
        }
        say(f"learning from {len(chosen)} of {len(self.all)} images; SHA-256 of their ids: {sha256}", self.quiet)
        if recipe.shots is not None:
            boxes = boxes_to_learn(chosen)
            choice |= {"choice": "shots", "shots": recipe.shots, "boxes": boxes, "boxes_sha256": boxes_digest(boxes)}
            say(f"{shots_in_words(chosen, recipe)}; SHA-256 of the boxes: {choice['boxes_sha256']}", self.quiet)
        if self.missing:
            say(missing_in_words(chosen, self.all, self.missing), self.quiet)
        on_rank_zero(lambda: write_json(self.out / "labels.json", choice))
        optim = recipe.optim
        say(rates_in_words(recipe.batch_size, optim.lr, optim.reference_batch, world_size()), self.quiet)

    def learning_rate(self, step: int) -> float:
        """The schedule's rate."""
        return self.schedule.learning_rate(step)

    def dataset(self, augment: AugmentConfig) -> Dataset[DetectionSample]:
        """The training images with their targets."""
        recipe, masks = self.recipe, self.recipe.detector.targets == "masks"
        sizes = recipe.min_size, recipe.max_size
        return DetectionDataset(self.chosen, *sizes, True, masks, recipe.seed, recipe.random_crop, augment)

    def batches(self, first: int, end: int) -> Iterator[list[DetectionSample]]:
        """This process's share of each step's images; augmentation is closed for the last steps."""
        augment = self.recipe.augment
        last = end if augment == augment.closed else min(max(first, round(augment.until * self.steps)), end)
        for start, stop, how in ((first, last, augment), (last, end, augment.closed)):
            if start < stop:
                yield from self._loader(start, stop, how)

    def _loader(self, first: int, end: int, augment: AugmentConfig) -> DataLoader[list[DetectionSample]]:
        steps = self.share, first, end, self.recipe.seed, rank(), world_size()
        if self.repeats is None:
            sampler = TrainingSampler(len(self.chosen), *steps)
        else:
            sampler = RepeatFactorSampler(self.repeats, *steps)
        return make_loader(self.dataset(augment), sampler, self.workers, pinned=torch.cuda.is_available())

    def loss(self, module: nn.Module, batch: list[DetectionSample], step: int) -> Mapping[str, Tensor]:
        """The detector's losses and their sum.

        Raises:
            UserError: none of the first images can be used.
        """
        self._count_usable(batch)
        return detector_losses(module, batch, self.fabric.device)

    def _count_usable(self, samples: list[DetectionSample]) -> None:
        skipped = [sample.skipped for sample in samples if sample.skipped is not None]
        self.skipped.update(skipped)
        self._unusable += len(skipped)
        self._usable += len(samples) - len(skipped)
        if not self._usable and self._unusable >= min(len(self.chosen), HOPELESS):
            path, reason = skipped[0]
            raise UserError(f"{path}: {reason}; none of the first {self._unusable} images can be used: check the data")

    def after_step(self, step: int, log: MetricLogger) -> None:
        """Average the weights."""
        if self.average is not None:
            self.average.update(step)

    def evaluate(self) -> Mapping[str, float]:
        """AP by the recipe's metric, or mIoU, on the validation images."""
        with self.average.applied() if self.average is not None else nullcontext():
            scores, _ = evaluate_detector(self.module, self.val, self.recipe, self.fabric)
        return known(next(iter(scores.values())).as_dict())

    def state(self) -> dict[str, Any]:
        """The averaged weights."""
        return {} if self.average is None else {"average": self.average.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the averaged weights."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def remedy(self, error: OutOfMemory | NonFiniteStep) -> str:
        """Settings that need less memory, or a lower rate."""
        if isinstance(error, NonFiniteStep):
            return "Lower optim.lr"
        had = f"{self.micro_batches.size} images at a time do not fit"
        if world_size() > 1:
            return f"{had}; give a larger --accumulate, or smaller images (--min-size, --max-size)"
        if self.micro_batches.adaptive:
            return f"{had}; give smaller images (--min-size, --max-size) or close other programs"
        return f"{had}; give --accumulate auto, which goes through each batch in parts that fit"

    def finish(self, seconds: float) -> None:
        """Write the detector, what it finds in the validation images, and the summary with its AP."""
        self.skipped.update(merged(self.skipped))
        if self.average is not None:
            self.average.apply()
        if self.recipe.precise_norms and self.steps:
            self._estimate_norms()
        on_rank_zero(lambda: self._write(seconds))

    def _estimate_norms(self) -> None:
        count = self.recipe.precise_norms
        say(f"estimating the statistics of norms from {count} batches", self.quiet)
        torch.manual_seed(self.recipe.seed)
        batches = self.batches(self.steps, self.steps + count)
        parts = (part for batch in batches for part in self.micro_batches.split(batch))
        with self.fabric.autocast():
            estimate_norms(self.module, parts, lambda part: self.loss(self.module, part, self.steps))

    def _write(self, seconds: float) -> None:
        weights = Run(self.out).weights
        save_detector(weights, self.module)
        scores, skipped = evaluate_detector(self.module, self.val, self.recipe, self.fabric, self.out)
        write_json(self.out / "summary.json", self._summary(scores, skipped, seconds))
        say(score_table(scores), self.quiet)
        for left_out, name in ((self.skipped, "labelled images"), (skipped, "images of --val")):
            if left_out:
                say(skipped_report(left_out, f"{name} could not be read and were left out"), self.quiet)
        say(f"detector: {weights}; classes and label choice: {self.out / 'labels.json'}", self.quiet)

    def _summary(
        self, scores: Mapping[str, Scores | SegmentationScores], skipped: Mapping[str, str], seconds: float
    ) -> dict[str, Any]:
        return {
            "detector": self.recipe.detector.kind,
            "labelled_images": len(self.chosen),
            "classes_without_labels": self.missing,
            "steps": self.steps,
            "seconds": round(seconds, 1),
            "weights": str(self.report) if self.report else "from scratch",
            "loaded": dict(self.report.shares) if self.report else {},
            "scores": {kind: result.as_dict() for kind, result in scores.items()},
            "per_class": {kind: result.per_class for kind, result in scores.items()},
            "skipped": dict(skipped),
            "skipped_in_training": self.skipped,
        }


class SegmentTask(DetectTask):
    """FCN on class maps: mIoU on validation images."""

    def check_sizes(self) -> None:
        """Refuse settings that only detectors have, and crops without extent.

        Raises:
            UserError: naming the key.
        """
        recipe, (low, high) = self.recipe, self.recipe.crop.scales
        if recipe.random_crop:
            raise UserError("random_crop: not for detector.kind=fcn, which has crop.size and crop.scales")
        if recipe.crop.size < 1 or not 0 < low <= high:
            raise UserError(
                f"crop: size {recipe.crop.size} and scales {low} to {high}; expected more than 0, in this order"
            )

    def dataset(self, augment: AugmentConfig) -> Dataset[DetectionSample]:
        """Crops of the training images with their class maps."""
        recipe = self.recipe
        sizes = recipe.min_size, recipe.max_size
        return SegmentationDataset(self.chosen, *sizes, recipe.crop, recipe.trunk.mean, recipe.seed)


def check_weights(recipe: FinetuneRecipe, weights: Path) -> None:
    """Load the weights into the trunk, to find a mistake before hours of training.

    Raises:
        UserError: they do not fit.
    """
    load_trunk(build_trunk(recipe.trunk, recipe.detector), weights, recipe.min_loaded)


def run_finetuning(
    recipe: FinetuneRecipe,
    recipe_text: str,
    out: Path,
    data: LabelledData,
    val: LabelledData,
    weights: Path | None = None,
    quiet: bool = False,
    allow_changes: bool = False,
    unlabelled: ImageIndex | None = None,
) -> Run:
    """Fine-tune in a folder, continuing what is there; see `boxless.finetune`."""
    run, fabric, quiet = Run(out), training_fabric(recipe.precision), quiet or rank() > 0
    inputs = {
        "data": data.origin,
        "labels": labels_digest(data.images),
        "val": val.origin,
        "val_labels": labels_digest(val.images),
        "targets": " ".join(targets_digest(each, recipe.detector.targets) for each in (data, val)),
        "weights": str(weights) if weights else None,
        "weights_sha256": sha256_of(weights) if weights else None,
        "unlabelled": unlabelled.content if unlabelled is not None else None,
    }
    with training_in(out, recipe_text, inputs, allow_changes, quiet) as unfinished:
        if unfinished:
            given = recipe, fabric, out, data, val, weights, quiet
            fit(_task(recipe)(*given) if unlabelled is None else _self_training(*given, unlabelled), run, fabric, quiet)
    return run


def _task(recipe: FinetuneRecipe) -> type[DetectTask]:
    return SegmentTask if recipe.detector.targets == "classes" else DetectTask


def _self_training(*arguments: Any) -> DetectTask:
    from boxless.tasks.self_train import SelfTrainTask

    return SelfTrainTask(*arguments)


def detector_losses(detector: nn.Module, samples: list[DetectionSample], device: torch.device) -> dict[str, Tensor]:
    """The losses of a detector in torchvision's interface and, as `loss`, their sum."""
    images = [sample.image.to(device, non_blocking=True).float() / 255 for sample in samples]
    targets = [{k: v.to(device, non_blocking=True) for k, v in sample.target.items()} for sample in samples]
    losses: dict[str, Tensor] = detector(images, targets)
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def make_detector_optimizer(detector: nn.Module, trunk: Trunk, settings: FinetuneOptim) -> Optimizer:
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
    return make_optimizer(settings.name, groups, settings.lr, settings.momentum)


def save_detector(path: Path, detector: nn.Module) -> None:
    """Write all of a detector's weights as safetensors, atomically."""
    from safetensors.torch import save_file

    with written(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in detector.state_dict().items()}, partial)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
