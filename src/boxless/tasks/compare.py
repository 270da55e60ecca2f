"""Will pretraining help? The same fine-tuning from several starts, on shares of the labels, with several seeds."""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from boxless.data.annotations.read import LabelledData
from boxless.data.gpu_jpeg import require_gpu_decoder
from boxless.data.index import ImageIndex
from boxless.data.unlabelled import Proposals
from boxless.detectors.all import DETECTORS
from boxless.detectors.trunk import WHOLE_BODY, with_neck
from boxless.errors import UserError
from boxless.methods.all import METHODS
from boxless.recipes.load import describe, load, names
from boxless.recipes.overrides import did_you_mean, override, renamed
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run
from boxless.runs.weights import local, resolve_trunk, weights_file, with_trunk_of
from boxless.tasks.compare_table import REFERENCE, Cell, Row, summarize, table, write_table
from boxless.tasks.finetune import run_finetuning
from boxless.tasks.labels import choose_labels
from boxless.tasks.pretrain import run_pretraining
from boxless.tasks.proposals import prepare_boxes
from boxless.training.device import training_fabric
from boxless.training.progress import say

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: `rows` and where they were written."""

    path: Path
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return table(self.rows)


@dataclass(frozen=True)
class Start:
    """Start of a fine-tuning: a `recipe` to pretrain with, from `init`; or existing `weights`; or neither."""

    name: str
    recipe: PretrainRecipe | None = None
    base: str = ""
    weights: str | None = None
    init: Path | None = None


def resolve_starts(methods: Sequence[str], recipe: CompareRecipe, init: str | None = None) -> list[Start]:
    """The starts that a user's words name: none, one of the comparison's own, a method, a recipe, a run or weights.

    What is pretrained starts from the weights `init`, or from random ones.

    Raises:
        UserError: if a word names nothing.
    """
    starts = []
    file = weights_file(init) if init else None
    for word in methods:
        if word == REFERENCE:
            starts.append(Start(word))
        elif word in recipe.starts:
            starts.append(_own_start(word, recipe, init))
        elif word in METHODS:
            starts.append(Start(word, _pretrain_recipe(word, recipe), f"{word}-small", init=file))
        elif word in names() or Path(word).suffix in (".yaml", ".yml"):
            pretrain = with_trunk_of(load(word, PretrainRecipe), init)
            starts.append(Start(Path(word).stem, pretrain, word, init=file))
        elif Path(word).exists():
            starts.append(Start(Path(word).stem if Path(word).is_file() else Path(word).name, weights=word))
        else:
            known = [REFERENCE, *recipe.starts, *METHODS, *names()]
            raise UserError(
                f"methods: {word!r} is no method, recipe, run or weights file{did_you_mean(word, known)}; "
                f"methods are {', '.join([REFERENCE, *recipe.starts, *METHODS])}"
            )
    if len({start.name for start in starts}) < len(starts):
        raise UserError("methods: two of them have the same name; rename a file or a run's folder")
    return starts


def _own_start(name: str, recipe: CompareRecipe, init: str | None) -> Start:
    """A start that the comparison's recipe describes; its own `weights` go before the comparison's."""
    entry = recipe.starts[name]
    keys = dict(entry) if isinstance(entry, Mapping) else {"method": entry}
    method, file = keys.pop("method", None), keys.pop("weights", renamed(keys, "init", "weights", init))
    if str(method) not in METHODS:
        raise UserError(
            f"starts.{name}: no method {method!r}{did_you_mean(str(method), METHODS)}; "
            f"expected keys such as {{method: soco, method.boxes: 1}}; methods are {', '.join(METHODS)}"
        )
    try:
        file = local(str(file)) if file else None
        common = replace(recipe, pretrain=with_trunk_of(recipe.pretrain, file))
        pretrain = override(_pretrain_recipe(method, common), keys)
        return Start(name, pretrain, f"{method}-small", init=weights_file(file) if file else None)
    except UserError as error:
        raise UserError(f"starts.{name}: {error}") from error


def _pretrain_recipe(method: str, recipe: CompareRecipe) -> PretrainRecipe:
    """The comparison's pretraining by another method, which brings its own optimiser: one rate does not suit them all.

    What the comparison's optimiser has of its own, such as a rate that the user set, holds for every method.
    """
    common, own = recipe.pretrain, load(f"{method}-small", PretrainRecipe)
    if common.method.name == method:
        return _with_trainable_neck(replace(common, method=common.method.at_size(recipe.view_size)))
    usual = load(f"{common.method.name}-small", PretrainRecipe).optim
    values = {field.name: getattr(common.optim, field.name) for field in fields(usual)}
    changed = {name: value for name, value in values.items() if value != getattr(usual, name)}
    optim = replace(own.optim, **changed)
    return _with_trainable_neck(replace(common, method=own.method.at_size(recipe.view_size), optim=optim))


def _with_trainable_neck(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe with the neck that its method asks for, or with the whole backbone that C4 would have cut."""
    return replace(recipe, trunk=with_neck(recipe.trunk, getattr(recipe.method, "necks", WHOLE_BODY)))


@dataclass(frozen=True)
class Finetuning:
    """A detector with its schedule, fine-tuned from every start; `base` is the recipe that it comes from."""

    name: str
    recipe: FinetuneRecipe
    base: str = "faster-rcnn-fpn"


def resolve_detectors(words: Sequence[str], recipe: CompareRecipe) -> list[Finetuning]:
    """The fine-tunings that a user's words name: kinds with the comparison's settings, or recipes with their own.

    Each has the trunk that is pretrained, with the neck that the detector needs; without words it is the recipe's.

    Raises:
        UserError: if a word names nothing, or a detector without AP.
    """
    choices = []
    for word in words or [recipe.finetune.detector.kind]:
        if word in DETECTORS:
            settings = override(recipe.finetune, {"detector.kind": word})
            choice = Finetuning(word, replace(settings, trunk=recipe.pretrain.trunk))
        elif word in names() or Path(word).suffix in (".yaml", ".yml"):
            settings = load(word, FinetuneRecipe)
            trunk = replace(recipe.pretrain.trunk, neck=settings.trunk.neck)
            choice = Finetuning(Path(word).stem, replace(settings, trunk=trunk), word)
        else:
            raise UserError(
                f"detectors: {word!r} is no detector or recipe of fine-tuning{did_you_mean(word, DETECTORS)}; "
                f"detectors are {', '.join(kind for kind, each in DETECTORS.items() if each.targets != 'classes')}"
            )
        if choice.recipe.detector.targets == "classes":
            raise UserError(f"detectors: {word} is FCN; compare measures AP: take finetune and evaluate for each start")
        choices.append(replace(choice, recipe=replace(choice.recipe, evaluate_every=10**9)))  # measured at its end
    if len({choice.name for choice in choices}) < len(choices):
        raise UserError("detectors: two of them have the same name; leave one out or rename a file")
    return choices


DECIDED = {
    "finetune.seed": "--seeds counts them",
    "finetune.label_seed": "--seeds counts them",
    "finetune.label_fraction": "--label-fraction lists them",
    "finetune.label_count": "--label-fraction lists the shares",
    "finetune.evaluate_every": "each cell is measured at its end",
    "finetune.trunk": "it is the pretrained one, pretrain.trunk",
}
"""Keys of a fine-tuning that a comparison sets by itself, with what does."""


def refuse_decided(keys: Iterable[str]) -> None:
    """Raise `UserError` where a user asks for what the comparison decides."""
    for key in keys:
        for decided, reason in DECIDED.items():
            if key == decided or key.startswith(f"{decided}."):
                raise UserError(f"{key}: has no effect in a comparison: {reason}")


def run_comparison(
    images: ImageIndex | None,
    train: LabelledData,
    val: LabelledData,
    starts: Sequence[Start],
    detectors: Sequence[Finetuning],
    fractions: Sequence[float],
    seeds: int,
    out: Path,
    jobs: int,
    quiet: bool,
) -> Comparison:
    """Pretrain once per start, fine-tune every cell, and write the table; finished parts are not done again.

    `images` are those without labels; None where no start needs them. `jobs` runs go on at a time.
    """
    new = []
    for start in starts:  # one after the other: runs on the same images share their boxes
        if start.recipe is None:
            continue
        assert images is not None
        if Run(_folder(out, start)).finished:
            _run_pretraining(start, images, None, _folder(out, start), True)  # refuses what was run otherwise
            continue
        new.append(start)
        if start.recipe.decoder == "gpu":
            require_gpu_decoder(training_fabric(start.recipe.precision).device)
        if start.recipe.method.needs_boxes:
            prepare_boxes(images, start.recipe, _folder(out, start), quiet)
    list(_at_once(_pretrain, [(start, images, _folder(out, start), quiet) for start in new], jobs))
    weights = {start.name: _weights(start, out) for start in starts}
    work = []
    for detector in detectors:
        for fraction in fractions:
            for seed in range(seeds):
                settings = replace(detector.recipe, label_fraction=fraction, label_seed=seed, seed=seed)
                choice = replace(detector, recipe=settings)
                work += [(start, choice, train, val, weights[start.name], out) for start in starts]
    say(f"fine-tuning: {len(work)} cells, {min(jobs, len(work))} at a time", quiet)
    cells: list[Cell] = []
    began = time.monotonic()
    for cell in _at_once(_cell, work, jobs):
        cells.append(cell)
        left = (time.monotonic() - began) / len(cells) * (len(work) - len(cells)) / 60
        say(
            f"  {len(cells)} of {len(work)}: {cell.detector}, {cell.method}, {cell.fraction:.0%} of the labels, "
            f"seed {cell.seed}: AP {100 * cell.scores['AP']:.1f}, AP50 {100 * cell.scores['AP50']:.1f}, "
            f"about {left:.0f} min left",
            quiet,
        )
    rows = summarize(cells)
    write_table(out, cells, rows)
    return Comparison(out, tuple(cells), tuple(rows))


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


def _folder(out: Path, start: Start) -> Path:
    return out / "pretrain" / start.name


def _pretrain(start: Start, images: ImageIndex, folder: Path, quiet: bool) -> None:
    assert start.recipe is not None
    say(f"pretraining {start.name}", quiet)
    boxes = prepare_boxes(images, start.recipe, folder, quiet) if start.recipe.method.needs_boxes else None
    _run_pretraining(start, images, boxes, folder, quiet)


def _run_pretraining(start: Start, images: ImageIndex, boxes: Proposals | None, folder: Path, quiet: bool) -> None:
    assert start.recipe is not None
    run_pretraining(start.recipe, describe(start.recipe, start.base), folder, images, boxes, start.init, quiet)


def _weights(start: Start, out: Path) -> str | None:
    if start.recipe is not None:
        return str(_folder(out, start))
    return str(weights_file(start.weights)) if start.weights and not Path(start.weights).is_dir() else start.weights


def _cell(
    start: Start, detector: Finetuning, train: LabelledData, val: LabelledData, weights: str | None, out: Path
) -> Cell:
    own = detector.recipe.trunk
    settings = replace(detector.recipe, trunk=resolve_trunk(own, weights, (own.neck,)))  # one neck for all starts
    labels = f"labels-{settings.label_fraction:g}"
    folder = out / "finetune" / detector.name / start.name / labels / f"seed-{settings.seed}"
    file = weights_file(weights) if weights else None
    run = run_finetuning(settings, describe(settings, detector.base), folder, train, val, file, quiet=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of no use to a finished cell, and six times its weights
    images = len(choose_labels(train, settings))
    scores = {name: math.nan if ap is None else ap for name, ap in run.summary["scores"]["bbox"].items()}
    return Cell(
        detector.name, start.name, settings.label_fraction, images, settings.seed, scores, run.summary["seconds"]
    )
