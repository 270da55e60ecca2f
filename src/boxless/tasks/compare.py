"""Compare starts: the same fine-tuning from each of them, on few labels, with several seeds."""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from boxless.data.annotations.read import LabelledData
from boxless.data.gpu_jpeg import require_gpu_decoder
from boxless.data.index import ImageIndex
from boxless.recipes.load import describe
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.runs.weights import built_as_in, resolve_trunk
from boxless.tasks.compare_starts import Finetuning, Start
from boxless.tasks.compare_table import Amount, Cell, Row, columns, summarize, table, write_table
from boxless.tasks.finetune import check_weights, run_finetuning
from boxless.tasks.labels import choose_labels, missing_classes, missing_in_words
from boxless.tasks.pretrain import check_start, run_pretraining
from boxless.tasks.proposals import prepare_boxes
from boxless.training.device import training_fabric
from boxless.training.progress import say

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; printed, it is the table.

    Attributes:
        path: folder of the comparison.
        cells: every fine-tuning: detector, method, fraction or shots, images, seed, scores (0..1), seconds.
        rows: their means and gains over the seeds.
    """

    path: Path
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]

    def table(self) -> dict[str, list[Any]]:
        """The rows as columns, name -> values, which pandas.DataFrame takes; scores are 0..1."""
        return columns(self.rows)

    def __str__(self) -> str:
        return table(self.rows)


@dataclass(frozen=True)
class Plan:
    """Cells to fill, and how.

    Attributes:
        starts: starts of the fine-tunings.
        detectors: detectors that every start is put into.
        amounts: labels to learn from.
        seeds: fine-tunings per start and amount.
        out: folder of the comparison.
        jobs: runs at the same time.
        quiet: print nothing.
    """

    starts: Sequence[Start]
    detectors: Sequence[Finetuning]
    amounts: Sequence[Amount]
    seeds: int
    out: Path
    jobs: int = 1
    quiet: bool = False

    def cells(self) -> Iterator[tuple[Start, Finetuning]]:
        """Every start in every detector on every amount of labels, once for each seed."""
        for detector in self.detectors:
            for recipe in self.choices(detector):
                for start in self.starts:
                    yield start, replace(detector, recipe=_with_trunk_of(recipe, self.weights(start)))

    def choices(self, detector: Finetuning) -> Iterator[FinetuneRecipe]:
        """A detector's recipe for every amount of labels and seed."""
        for amount in self.amounts:
            labels = replace(detector.recipe, label_fraction=amount.fraction, shots=amount.shots or None)
            for seed in range(self.seeds):
                yield replace(labels, label_seed=seed, seed=seed)

    def folder(self, start: Start) -> Path:
        """Folder of a start's pretraining, the same with and without self-training after it."""
        return self.out / "pretrain" / start.plain

    def weights(self, start: Start) -> Path | None:
        """Weights of a start, once it is pretrained."""
        return start.weights if start.recipe is None else Run(self.folder(start)).weights


def run_comparison(plan: Plan, images: ImageIndex | None, train: LabelledData, val: LabelledData) -> Comparison:
    """Pretrain once per start, fine-tune every cell, and write the table; finished parts are not done again.

    `images` are those without labels; None if no start needs them.
    """
    _check_weights(plan)
    missing = _missing_classes(plan, train, val)
    for line in missing:
        say(line, plan.quiet)
    _pretrain_all(plan, images)
    work = [
        (start, detector, train, val, plan.weights(start), plan.out, images if start.unlabelled else None)
        for start, detector in plan.cells()
    ]
    say(f"fine-tuning: {len(work)} cells, {min(plan.jobs, len(work))} at a time", plan.quiet)
    cells: list[Cell] = []
    began = time.monotonic()
    for cell in _at_once(_cell, work, plan.jobs):
        cells.append(cell)
        left = (time.monotonic() - began) / len(cells) * (len(work) - len(cells)) / 60
        say(
            f"  {len(cells)} of {len(work)}: {cell.detector}, {cell.method}, {cell.amount}, "
            f"seed {cell.seed}: AP {100 * cell.scores['AP']:.1f}, AP50 {100 * cell.scores['AP50']:.1f}, "
            f"about {left:.0f} min left",
            plan.quiet,
        )
    rows = summarize(cells)
    write_table(plan.out, cells, rows, missing)
    return Comparison(plan.out, tuple(cells), tuple(rows))


def _missing_classes(plan: Plan, train: LabelledData, val: LabelledData) -> list[str]:
    """A sentence for each choice of labels that misses a class which AP counts; all starts share the choice."""
    lines = []
    for recipe in plan.choices(plan.detectors[0]):
        chosen = choose_labels(train, recipe)
        if missing := missing_classes(chosen, val):
            amount = Amount(recipe.label_fraction, recipe.shots or 0)
            lines.append(f"{amount}, seed {recipe.seed}: {missing_in_words(chosen, train, missing)}")
    return lines


def _with_trunk_of(recipe: FinetuneRecipe, weights: Path | None) -> FinetuneRecipe:
    """The recipe with the trunk of its weights, but with its own neck: alike for all starts."""
    trunk = resolve_trunk(recipe.trunk, weights, (recipe.trunk.neck,))
    return replace(recipe, trunk=built_as_in(trunk, weights))


def _check_weights(plan: Plan) -> None:
    """Find files of weights that do not fit before anything is trained."""
    for start in plan.starts:
        if start.recipe is not None and start.init is not None and not Run(plan.folder(start)).finished:
            check_start(start.recipe, start.init)
        if start.weights is not None:
            for detector in plan.detectors:
                check_weights(_with_trunk_of(detector.recipe, start.weights), start.weights)


def _pretrain_all(plan: Plan, images: ImageIndex | None) -> None:
    new, seen = [], set[Path]()
    for start in plan.starts:  # one after the other: runs on the same images share their boxes
        if start.recipe is None or plan.folder(start) in seen:
            continue
        seen.add(plan.folder(start))
        assert images is not None
        if not Run(plan.folder(start)).finished:
            new.append((start, images, plan.folder(start), plan.quiet))
            if start.recipe.decoder == "gpu":
                require_gpu_decoder(training_fabric(start.recipe.precision).device)
            if start.recipe.method.needs_boxes:
                prepare_boxes(images, start.recipe, plan.folder(start), plan.quiet)
        else:
            _pretrain(start, images, plan.folder(start), quiet=True)  # refuses other settings
    list(_at_once(_pretrain, new, plan.jobs))


def _pretrain(start: Start, images: ImageIndex, folder: Path, quiet: bool) -> None:
    assert start.recipe is not None
    needed = start.recipe.method.needs_boxes and not Run(folder).finished
    say(f"pretraining {start.plain}", quiet)
    boxes = prepare_boxes(images, start.recipe, folder, quiet) if needed else None
    run_pretraining(start.recipe, describe(start.recipe, start.base), folder, images, boxes, start.init, quiet)


def _cell(
    start: Start,
    detector: Finetuning,
    train: LabelledData,
    val: LabelledData,
    weights: Path | None,
    out: Path,
    unlabelled: ImageIndex | None,
) -> Cell:
    recipe = detector.recipe
    amount = Amount(recipe.label_fraction, recipe.shots or 0)
    folder = out / "finetune" / detector.name / start.name / amount.folder / f"seed-{recipe.seed}"
    text = describe(recipe, detector.base)
    run = run_finetuning(recipe, text, folder, train, val, weights, quiet=True, unlabelled=unlabelled)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of no use to a finished cell, and six times its weights
    images = run.summary["labelled_images"]
    scores = {name: math.nan if ap is None else ap for name, ap in run.summary["scores"]["bbox"].items()}
    seconds = run.summary["seconds"]
    return Cell(detector.name, start.name, amount.fraction, images, recipe.seed, scores, seconds, amount.shots)


def _at_once(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[T]:
    """The function's results in the arguments' order, `jobs` at a time, each with its share of the cores."""
    jobs = min(jobs, len(arguments))
    if jobs <= 1:
        yield from (function(*each) for each in arguments)
        return
    with parallel_config("loky", inner_max_num_threads=max(1, (os.cpu_count() or 1) // jobs)):
        yield from Parallel(n_jobs=jobs, return_as="generator")(
            delayed(_with_parent)(function, *each) for each in arguments
        )


def _with_parent(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process that ends as soon as its parent is gone, for example by kill -9."""
    _watch(os.getppid())
    return function(*arguments)


@cache
def _watch(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
