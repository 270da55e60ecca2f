"""Will pretraining help? The same fine-tuning from several starts, on shares of the labels, with several seeds."""

import csv
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from joblib import Parallel, delayed, parallel_config
from scipy.stats import t as student_t

from boxless.data.index import ImageIndex
from boxless.data.labels import LabelledData
from boxless.data.loader import Boxes
from boxless.errors import UserError
from boxless.figures.label_efficiency import label_efficiency
from boxless.figures.style import save
from boxless.recipes.catalogue import describe, load, names
from boxless.recipes.overrides import did_you_mean
from boxless.recipes.schema import METHODS, CompareRecipe, FinetuneRecipe, PretrainRecipe
from boxless.runs.finetuning import run_finetuning, with_fitting_neck, with_trunk_of
from boxless.runs.folder import Run, write_text
from boxless.runs.labels import choose_labels
from boxless.runs.pretraining import prepare_boxes, run_pretraining
from boxless.runs.pretraining import with_trunk_of as with_trunk_of_start
from boxless.runs.weights import weights_file

T = TypeVar("T")
REFERENCE = "none"
"""The start from scratch, which gains are measured over."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a start, a share of the labels, a seed, and what came out."""

    method: str
    fraction: float
    images: int
    seed: int
    scores: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Row:
    """The cells of one start and one share of the labels, over the seeds.

    Attributes:
        method: the start.
        fraction: of the labels, 0..1.
        images: labelled images.
        n: seeds.
        mean: score name -> mean.
        spread: score name -> standard deviation over the seeds (nan for one seed).
        gain: in AP over the reference with the same seeds' labels; None for the reference itself.
        interval: half width of the gain's 95 % interval (paired t; nan for one seed).
    """

    method: str
    fraction: float
    images: int
    n: int
    mean: dict[str, float]
    spread: dict[str, float]
    gain: float | None
    interval: float

    @property
    def verdict(self) -> str:
        """What the gain is, in words."""
        if self.gain is None:
            return "reference" if self.method == REFERENCE else ""
        if math.isnan(self.interval):
            return "one seed: cannot tell"
        if abs(self.gain) <= self.interval:
            return "within noise"
        return "better" if self.gain > 0 else "worse"


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
    """Where a fine-tuning starts from: `recipe` to pretrain with, from `init`, or `weights` that exist, or neither."""

    name: str
    recipe: PretrainRecipe | None = None
    base: str = ""
    weights: str | None = None
    init: Path | None = None


def resolve_starts(methods: Sequence[str], recipe: CompareRecipe, init: str | None = None) -> list[Start]:
    """The starts that a user's words name: none, a method, a recipe, a run or a weights file.

    What is pretrained starts from the weights `init`, or from random ones.

    Raises:
        UserError: where a word names nothing.
    """
    starts = []
    file = weights_file(init) if init else None
    for word in methods:
        if word == REFERENCE:
            starts.append(Start(word))
        elif word in METHODS:
            base = f"{word}-small"
            pretrain = _pretrain_recipe(word, base, recipe)
            starts.append(Start(word, _with_trainable_neck(pretrain), base, init=file))
        elif word in names() or Path(word).suffix in (".yaml", ".yml"):
            pretrain = with_trunk_of_start(load(word, PretrainRecipe), init)
            starts.append(Start(Path(word).stem, pretrain, word, init=file))
        elif Path(word).exists():
            starts.append(Start(Path(word).stem if Path(word).is_file() else Path(word).name, weights=word))
        else:
            known = [REFERENCE, *METHODS, *names()]
            raise UserError(
                f"methods: {word!r} is no method, recipe, run or weights file{did_you_mean(word, known)}; "
                f"methods are {', '.join([REFERENCE, *METHODS])}"
            )
    if len({start.name for start in starts}) < len(starts):
        raise UserError("methods: two of them have the same name; rename a file or a run's folder")
    return starts


def _pretrain_recipe(method: str, base: str, recipe: CompareRecipe) -> PretrainRecipe:
    """The comparison's pretraining by another method, which brings its own optimiser: one rate does not suit them all.

    What the comparison's optimiser has of its own, such as a rate that the user set, holds for every method.
    """
    common, own = recipe.pretrain, load(base, PretrainRecipe)
    if common.method.name == method:
        return replace(common, method=common.method.at_size(recipe.view_size))
    usual = load(f"{common.method.name}-small", PretrainRecipe).optim
    values = {field.name: getattr(common.optim, field.name) for field in fields(usual)}
    changed = {name: value for name, value in values.items() if value != getattr(usual, name)}
    return replace(common, method=own.method.at_size(recipe.view_size), optim=replace(own.optim, **changed))


def _with_trainable_neck(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe with the neck that its method asks for, or with the whole backbone that C4 would have cut."""
    usual = "fpn" if recipe.trunk.neck == "c4" else recipe.trunk.neck
    necks = getattr(recipe.method, "necks", (usual,))
    return replace(recipe, trunk=replace(recipe.trunk, neck=usual if usual in necks else necks[0]))


def run_comparison(
    images: ImageIndex | None,
    train: LabelledData,
    val: LabelledData,
    starts: Sequence[Start],
    fractions: Sequence[float],
    seeds: int,
    recipe: CompareRecipe,
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
        if start.recipe.method.needs_boxes:
            prepare_boxes(images, start.recipe, _folder(out, start), quiet)
    list(_at_once(_pretrain, [(start, images, _folder(out, start), quiet) for start in new], jobs))
    weights = {start.name: _weights(start, out) for start in starts}
    finetune_base = replace(recipe.finetune, trunk=recipe.pretrain.trunk)
    grid = [(start, fraction, seed) for fraction in fractions for seed in range(seeds) for start in starts]
    work = []
    for start, fraction, seed in grid:
        settings = replace(finetune_base, label_fraction=fraction, label_seed=seed, seed=seed)
        settings = with_trunk_of(settings, weights[start.name])
        settings = replace(settings, trunk=replace(settings.trunk, neck=finetune_base.trunk.neck))  # alike for all
        settings = replace(with_fitting_neck(settings), evaluate_every=10**9)
        work.append((start, settings, train, val, weights[start.name], out))
    _say(f"fine-tuning: {len(grid)} cells, {min(jobs, len(grid))} at a time", quiet)
    cells: list[Cell] = []
    began = time.monotonic()
    for cell in _at_once(_cell, work, jobs):
        cells.append(cell)
        left = (time.monotonic() - began) / len(cells) * (len(grid) - len(cells)) / 60
        _say(
            f"  {len(cells)} of {len(grid)}: {cell.method}, {cell.fraction:.0%} of the labels, seed {cell.seed}: "
            f"AP {100 * cell.scores['AP']:.1f}, AP50 {100 * cell.scores['AP50']:.1f}, about {left:.0f} min left",
            quiet,
        )
    rows = summarize(cells)
    _write(out, cells, rows)
    return Comparison(out, tuple(cells), tuple(rows))


def _at_once(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[T]:
    """The function's results in the arguments' order, `jobs` at a time, each with its share of the cores."""
    jobs = min(jobs, len(arguments))
    if jobs <= 1:
        yield from (function(*each) for each in arguments)
        return
    with parallel_config("loky", inner_max_num_threads=max(1, (os.cpu_count() or 1) // jobs)):
        yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(*each) for each in arguments)


def summarize(cells: Sequence[Cell]) -> list[Row]:
    """Cells as rows: mean and spread over the seeds, gain over the reference with the same labels."""
    rows = []
    reference = {(cell.fraction, cell.seed): cell.scores["AP"] for cell in cells if cell.method == REFERENCE}
    for fraction in sorted({cell.fraction for cell in cells}):
        for method in dict.fromkeys(cell.method for cell in cells):
            group = [cell for cell in cells if cell.method == method and cell.fraction == fraction]
            pairs = [
                (c.scores["AP"], reference[c.fraction, c.seed]) for c in group if (c.fraction, c.seed) in reference
            ]
            gains = [own - other for own, other in pairs]
            compared = bool(gains) and method != REFERENCE
            n = len(group)
            scores = {name: [cell.scores[name] for cell in group] for name in group[0].scores}
            interval = math.nan
            if compared and len(gains) > 1:
                interval = float(student_t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
            rows.append(
                Row(
                    method,
                    fraction,
                    group[0].images,
                    n,
                    {name: statistics.fmean(values) for name, values in scores.items()},
                    {name: float(np.std(values, ddof=1)) if n > 1 else math.nan for name, values in scores.items()},
                    statistics.fmean(gains) if compared else None,
                    interval,
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, in percent."""
    lines = [
        "| start | labelled images | AP | AP50 | AP75 | gain in AP (95 %) | seeds | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = [f"{100 * row.mean[name]:.1f} ± {100 * row.spread[name]:.1f}" for name in ("AP", "AP50", "AP75")]
        gain = "" if row.gain is None else f"{100 * row.gain:+.1f} ± {100 * row.interval:.1f}"
        name = "from scratch" if row.method == REFERENCE else row.method
        lines.append(
            f"| {name} | {row.images} ({row.fraction:.0%}) | {' | '.join(values)} | {gain} | {row.n} | {row.verdict} |"
        )
    return "\n".join(lines).replace("± nan", "")


NOTE = (
    "± is the standard deviation over seeds; a seed sets the choice of labelled images, the new layers and the order "
    "of images. The gain is paired by seed, with its 95 % interval (t distribution). Each method was pretrained once, "
    "so the spread does not hold the chance of pretraining itself."
)


def _folder(out: Path, start: Start) -> Path:
    return out / "pretrain" / start.name


def _pretrain(start: Start, images: ImageIndex, folder: Path, quiet: bool) -> None:
    assert start.recipe is not None
    _say(f"pretraining {start.name}", quiet)
    boxes = prepare_boxes(images, start.recipe, folder, quiet) if start.recipe.method.needs_boxes else None
    _run_pretraining(start, images, boxes, folder, quiet)


def _run_pretraining(start: Start, images: ImageIndex, boxes: Boxes | None, folder: Path, quiet: bool) -> None:
    assert start.recipe is not None
    run_pretraining(images, boxes, start.recipe, describe(start.recipe, start.base), folder, start.init, quiet)


def _weights(start: Start, out: Path) -> str | None:
    if start.recipe is not None:
        return str(_folder(out, start))
    return str(weights_file(start.weights)) if start.weights and not Path(start.weights).is_dir() else start.weights


def _cell(
    start: Start, settings: FinetuneRecipe, train: LabelledData, val: LabelledData, weights: str | None, out: Path
) -> Cell:
    folder = out / "finetune" / start.name / f"labels-{settings.label_fraction:g}" / f"seed-{settings.seed}"
    text = describe(settings, "faster-rcnn-fpn")
    file = weights_file(weights) if weights else None
    run = run_finetuning(train, val, settings, text, folder, file, quiet=True)
    images = len(choose_labels(train, settings))
    scores = {name: math.nan if ap is None else ap for name, ap in run.summary["scores"]["bbox"].items()}
    return Cell(start.name, settings.label_fraction, images, settings.seed, scores, run.summary["seconds"])


def _write(out: Path, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    score_names = list(cells[0].scores)
    writer.writerow(["method", "fraction", "images", "seed", *score_names, "seconds"])
    for c in cells:
        writer.writerow([c.method, c.fraction, c.images, c.seed, *(c.scores[name] for name in score_names), c.seconds])
    write_text(out / "comparison.csv", text.getvalue())
    write_text(out / "comparison.md", f"{table(rows)}\n\n{NOTE}\n")
    entries = [
        {
            "method": "from scratch" if c.method == REFERENCE else c.method,
            "fraction": c.fraction,
            "seed": c.seed,
            "AP": c.scores["AP"],
            "images": c.images,
        }
        for c in cells
    ]
    (out / "figures").mkdir(exist_ok=True)
    save(label_efficiency(entries), out / "figures" / "label-efficiency")


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
