"""Self-training as a Task: fine-tuning that also learns from images without labels (`methods/self_training.py`).

Each step after the burn-in has two micro-batches, one of unlabelled and one of labelled images. Looks at the validation
images guard it: a class of which most finds are wrong there is not learned from, and where AP falls, self-training ends
and the run goes on with labels alone, from the best weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from boxless.data.annotations.types import LabelledData
from boxless.data.dataloader import make_loader
from boxless.data.detection import DetectionSample
from boxless.data.index import ImageIndex
from boxless.data.sampler import make_sampler
from boxless.data.two_views import TwoViewDataset, TwoViews
from boxless.detectors.detector import keep_above
from boxless.evaluation.average_precision import Detections
from boxless.evaluation.matching import precision_by_class
from boxless.methods.self_training import BOX_TERMS, NEVER, OTHER_TERMS, Finds, Ranking, agreed, pseudo_target, ramp
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import detect_labelled
from boxless.tasks.evaluate import detection_scores, known
from boxless.tasks.finetune import DetectTask, detector_losses
from boxless.tasks.labels import listed
from boxless.training.distributed import broadcast, gather_rows, on_rank_zero, rank, total, world_size
from boxless.training.ema import WeightAverage
from boxless.training.logger import MetricLogger
from boxless.training.progress import say

AVERAGED = 0.05
"""Window of the teacher's weights as a share of the run, where the recipe has no `ema`."""
RAMP = 0.1
"""Steps T_r in which the unlabelled loss comes to its weight, as a share of the run."""
FALL = 0.02
"""AP below the best look at which self-training ends: two points."""
MOSTLY, FEWEST = 0.5, 5
"""Share of a class's finds in the validation images that must be right, of so many that would count."""
STRANGE = 0.9
"""Share of the unlabelled images without any find from which on they seem to be of another kind."""
SHOWN = 20
"""Largest number of classes that have curves of their own."""
EVERY = 10
"""Steps between two rows of the metrics."""


class SelfTrainTask(DetectTask):
    """A detector on labelled and unlabelled images.

    Args:
        unlabelled: the images without labels; there may be labelled ones among them.

    Attributes:
        begin: first step with unlabelled images, T_b.
        teaching: false once self-training has ended early.
        labelled: (C,), labelled objects of each class per image.
        muted: classes, from 0, that are not learned from.
        remarks: sentences of the guards.
    """

    average: WeightAverage

    def __init__(
        self,
        recipe: FinetuneRecipe,
        fabric: Fabric,
        out: Path,
        data: LabelledData,
        val: LabelledData,
        weights: Path | None,
        quiet: bool,
        unlabelled: ImageIndex,
    ) -> None:
        super().__init__(recipe, fabric, out, data, val, weights, quiet)
        self.unlabelled, self.settings = unlabelled, recipe.self_training
        self.begin = round(self.settings.burn_in * self.steps)
        learned = [image.labels[image.learned] for image in self.chosen.images]
        counts = np.bincount(np.concatenate(learned), minlength=len(data.classes))
        self.floor = recipe.detector.sure
        self.labelled = torch.from_numpy(counts / len(self.chosen))
        self.ranking = Ranking(self.settings.density * self.labelled, self.floor)
        self.teaching, self.muted, self.remarks = True, list[int](), list[str]()
        self._strange = False
        self._taken, self._look, self._best = 0, dict[str, Any](), dict[str, Any]()
        self._rows: list[Tensor] = []
        self._images = 0

    def build(self, fresh: bool = True) -> None:
        """Make trunk, detector and optimizer, and the teacher."""
        super().build(fresh)
        self.average = self.average or self.make_average(AVERAGED)
        say(f"self-training on {len(self.unlabelled)} images from step {self.begin} on", self.quiet)

    def batches(self, first: int, end: int) -> Iterator[list[Any]]:
        """This process's share of each step's labelled images, after the burn-in behind as many unlabelled ones."""
        views = self._views(max(first, self.begin), end) if end <= self.steps else iter(())
        for step, labelled in enumerate(super().batches(first, end), first):
            if self._due(step) and end <= self.steps:
                self._judge(step)
            teaching = self.teaching and self.begin <= step < self.steps
            yield [*next(views), *labelled] if teaching else list(labelled)

    def _views(self, first: int, end: int) -> Iterator[list[TwoViews]]:
        recipe = self.recipe
        if first >= end:
            return
        dataset = TwoViewDataset(self.unlabelled, recipe.min_size, recipe.max_size, recipe.augment, recipe.seed)
        share = self.share, first, end, recipe.seed, rank(), world_size()
        sampler = make_sampler(self.unlabelled, *share)
        yield from make_loader(dataset, sampler, self.workers, pinned=torch.cuda.is_available())

    def loss(self, module: nn.Module, batch: list[Any], step: int) -> Mapping[str, Tensor]:
        """The losses of a micro-batch, labelled or not (eq. 1); `fit` takes the mean of both, hence the factor 2."""
        if isinstance(batch[0], TwoViews):
            return self._unlabelled_loss(module, batch, step)
        terms = super().loss(module, batch, step)
        if self.teaching and step >= self.begin:
            return {**terms, "loss": 2 * terms["loss"]}
        return {**terms, "loss_unlabelled": torch.zeros_like(terms["loss"])}

    def _unlabelled_loss(self, module: nn.Module, batch: list[TwoViews], step: int) -> Mapping[str, Tensor]:
        self.skipped.update(views.skipped for views in batch if views.skipped is not None)
        thresholds = self.ranking.thresholds()
        thresholds[self.muted] = NEVER
        samples = [self._sample(*pair, thresholds) for pair in zip(batch, self._teach(batch), strict=True)]
        useful = [sample for sample in samples if (sample.target["labels"] > 0).any()]
        with kept_statistics(self.module):  # those of labelled images, which the validation images look like
            # Without any image too, for other processes wait in norms and counts.
            terms = detector_losses(module, useful or samples[:1], self.fabric.device)
        own = [value for name, value in terms.items() if name not in ("loss", *BOX_TERMS, *OTHER_TERMS)]
        loss = torch.stack(own).sum() * (len(useful) / len(samples))
        weight = ramp(step, self.begin, round(RAMP * self.steps), self.settings.weight)
        return {"loss": 2 * weight * loss, "loss_unlabelled": loss.detach()}

    @torch.no_grad()
    def _teach(self, batch: list[TwoViews]) -> Iterator[tuple[Finds, Tensor]]:
        """The teacher's finds in each image, and which of them have a certain place."""
        views = [views.weak for views in batch]
        there = torch.ones(1, dtype=torch.bool)
        found, again = self._found(views), self._found([view.mirrored(there) for view in views])
        return (agreed(*pair) for pair in zip(found, again, strict=True))

    def _found(self, views: Sequence[Any]) -> list[Finds]:
        images = [view.image[0].to(self.fabric.device).float() / 255 for view in views]
        training = self.module.training
        before = keep_above(self.module.eval(), self.floor / 2)
        try:
            with self.fabric.autocast():
                teacher = self.average.state_dict()
                found = functional_call(self.module, teacher, (images,), tie_weights=False)
        finally:
            keep_above(self.module.train(training), before)
        here = [{name: values.cpu() for name, values in one.items()} for one in found]
        return [
            Finds(view.source_boxes(one["boxes"].float()[None])[0], one["scores"].float(), one["labels"])
            for view, one in zip(views, here, strict=True)
        ]

    def _sample(self, views: TwoViews, found: tuple[Finds, Tensor], thresholds: Tensor) -> DetectionSample:
        """The strong view with the finds as a target; `thresholds` are those of each class."""
        finds, certain = found
        finds, certain = finds.at(keep := finds.scores >= self.floor / 2), certain[keep]
        counts = (finds.scores >= thresholds[finds.labels - 1]) & certain
        if views.skipped is None:
            number = torch.full_like(finds.labels, self._images)
            self._rows.append(torch.stack([number, finds.labels - 1, finds.scores, counts], 1))
            self._images += 1
        target = pseudo_target(views, finds, counts, self.recipe.detector.ignores)
        (height, width), strong, boxes = views.strong.size, views.strong, len(target["boxes"])
        if self.recipe.detector.targets == "masks":  # for torchvision, which asks for them; their loss is left out
            target["masks"] = torch.zeros(boxes, height, width, dtype=torch.uint8)
        if self.recipe.detector.targets == "keypoints":
            target["keypoints"] = torch.zeros(boxes, len(self.all.skeleton.names), 3)
        size = (width, height)  # of no use
        return DetectionSample(strong.image[0], strong.from_source[0], target, views.row, size, views.skipped)

    def after_step(self, step: int, log: MetricLogger) -> None:
        """Move the teacher, rank the step's finds, and report."""
        super().after_step(step, log)
        self._taken = step + 1
        if step < self.begin or not self.teaching:
            return
        rows = torch.cat([torch.zeros(0, 4), *(rows.float() for rows in self._rows)])
        rows[:, 0] += rank() * self.share
        self.ranking.add(gather_rows(rows.to(self.fabric.device)).cpu(), total(self._images))
        self._rows, self._images = [], 0
        if (step + 1) % EVERY == 0:
            values = self._abundance()
            log.write(step, values)
            log.status = f"{values['pseudo_boxes/all']:.0%} as many boxes an image as in the labels"

    def _abundance(self) -> dict[str, float]:
        """Pseudo-boxes per image, as a multiple of the labels' boxes per image."""
        found, wanted = self.ranking.labels_per_image(), self.labelled
        values = {"pseudo_boxes/all": float(found.sum() / wanted.sum())}
        if len(wanted) <= SHOWN:
            ratios = (found / wanted).tolist()
            names = zip(self.all.classes, ratios, wanted.tolist(), strict=True)
            values |= {f"pseudo_boxes/{name}": ratio for name, ratio, there in names if there}
        return values

    def evaluate(self) -> Mapping[str, float]:
        """AP of the teacher on the validation images, and which classes' finds can be trusted."""
        with self.average.applied():
            found, _ = detect_labelled(self.module, self.val, self.recipe, self.fabric)
        scores = next(iter(detection_scores(self.val, found, self.recipe).values())).as_dict()
        self._look = {"step": self._taken, "AP": scores["AP"], "right": self._right(found)}
        return known(scores)

    def _right(self, found: Sequence[Detections]) -> dict[int, float]:
        """The share of right finds of each class among those in the validation images that would count."""
        rows = [
            torch.stack([torch.full((len(one.scores),), number), torch.tensor(one.labels), torch.tensor(one.scores)], 1)
            for number, one in enumerate(found)
        ]
        ranking = Ranking(self.ranking.rates, self.floor, len(found))
        ranking.add(pad(torch.cat(rows), (0, 1)), len(found))
        shares, counts = precision_by_class(self.val, found, ranking.thresholds().numpy())
        return {number: float(shares[number]) for number in np.flatnonzero(counts >= FEWEST).tolist()}

    def _due(self, step: int) -> bool:
        every = self.evaluate_every
        looked = step == self.begin or (every is not None and step % every == 0)
        return self.teaching and step >= self.begin and looked

    def _judge(self, step: int) -> None:
        """Draw the conclusions of the look before a step, on all processes; taken now if a signal has cut it off."""

        def look() -> dict[str, Any]:
            if self._look.get("step") != step:
                self._taken = step
                self.evaluate()
            return self._look

        self._conclude(broadcast(on_rank_zero(look) or {}))

    def _conclude(self, look: dict[str, Any]) -> None:
        step, score, names = look["step"], look["AP"], self.all.classes
        wrong = [number for number, share in look["right"].items() if share < MOSTLY]
        if wrong and wrong != self.muted:
            shares = [f"{names[number]} ({look['right'][number]:.0%} right)" for number in wrong]
            self._remark(
                f"step {step}: of these classes most finds in the validation images are wrong, so they "
                f"are not learned from: {listed(shares)}"
            )
        self.muted = wrong
        if self.ranking.seen >= self.ranking.window and self.ranking.empty() > STRANGE and not self._strange:
            self._strange = True
            self._remark(
                f"step {step}: in {self.ranking.empty():.0%} of the unlabelled images nothing is found; are "
                "they of the same kind as the labelled ones?"
            )
        if score == score and score >= self._best.get("AP", -1.0):
            weights = {name: value.cpu().clone() for name, value in self.module.state_dict().items()}
            average = {name: value.cpu().clone() for name, value in self.average.state_dict().items()}
            self._best = {"step": step, "AP": score, "weights": weights, "average": average}
        elif score < self._best.get("AP", -1.0) - FALL:
            self.teaching = False
            self.module.load_state_dict(self._best["weights"])
            self.average.load_state_dict(self._best["average"])
            self._remark(
                f"step {step}: AP on the validation images fell from {self._best['AP']:.1%} at step "
                f"{self._best['step']} to {score:.1%}: self-training ends, back to the weights of then"
            )

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        say(f"self-training: {text}", self.quiet)

    def state(self) -> dict[str, Any]:
        """The averaged weights, the ranking, and the guards' conclusions."""
        own = {
            "ranking": self.ranking.state_dict(),
            "look": self._look,
            "best": self._best,
            "teaching": self.teaching,
            "strange": self._strange,
            "muted": self.muted,
            "remarks": self.remarks,
        }
        return {**super().state(), "self_training": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take all of that over."""
        super().restore(state)
        own = state.get("self_training")
        if own is None:  # a run that began without unlabelled images
            return
        self.ranking.load_state_dict(own["ranking"])
        self._look, self._best, self.teaching = own["look"], own["best"], own["teaching"]
        self._strange, self.muted, self.remarks = own["strange"], own["muted"], own["remarks"]

    def finish(self, seconds: float) -> None:
        """Go back to the best weights if AP has fallen at the very end, then finish as without unlabelled images."""
        if self.teaching and self._best:
            self._judge(self.steps)
        super().finish(seconds)

    def _summary(self, *arguments: Any) -> dict[str, Any]:
        used = {
            "images": len(self.unlabelled),
            "from_step": self.begin,
            "to_the_end": self.teaching,
            "boxes_per_labelled_box": {name.partition("/")[2]: value for name, value in self._abundance().items()},
            "not_learned_from": [self.all.classes[number] for number in self.muted],
            "remarks": self.remarks,
        }
        return {**super()._summary(*arguments), "self_training": used}


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let norms normalise by the batch as always, but keep their running statistics."""
    before = [(part, part.momentum) for part in module.modules() if isinstance(part, _BatchNorm)]
    try:
        for norm, _ in before:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
