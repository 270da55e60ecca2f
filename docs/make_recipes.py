"""Write docs/recipes.md and docs/figures/schedules.png from the recipes that are shipped.

python docs/make_recipes.py
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import published
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from boxless.detectors.detector import build_trunk
from boxless.detectors.trunk import Trunk
from boxless.plots.style import PALETTE, blank, styled
from boxless.recipes.load import docstrings, load, names
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.tasks.schedule import FinetuneSchedule, PretrainSchedule

HERE = Path(__file__).parent
IMAGENET, COCO = 1_281_167, 118_287
"""Images that epochs are of, where a schedule is drawn or a number of steps is given."""
CLASSES, KEYPOINTS = 80, 17
"""COCO's, of the detectors whose parameters are counted."""
COLUMNS, POINTS = 5, 1000

HEAD = f"""# Recipes

Made by `python docs/make_recipes.py` from the shipped recipes, which `boxless recipes` lists, and from published.yaml.

A recipe is every number of a run. `boxless pretrain --recipe NAME` and `boxless finetune --recipe NAME` take them by
name, any key can be set behind it (`--optim.lr 0.01`), and `boxless recipes NAME` prints one in full.
The papers' scores are quoted, not ours: what we measured is in [results.md](results.md).

Parameters (million) are of all that trains or follows: for pretraining with projectors, predictors and targets, for
detectors with {CLASSES} classes. Peak rates are those of the recipe's own batch.
"""


def parameters(recipe: PretrainRecipe | FinetuneRecipe) -> int:
    """Parameters of everything that the run builds, without building it."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation of what has no storage
        if isinstance(recipe, PretrainRecipe):
            module = recipe.method.build(Trunk(recipe.trunk))
        else:
            trunk = build_trunk(recipe.trunk, recipe.detector)
            module = recipe.detector.build(trunk, CLASSES, KEYPOINTS)
        return sum(parameter.numel() for parameter in module.parameters())


def schedule(recipe: PretrainRecipe | FinetuneRecipe) -> tuple[int, Callable[[int], float]]:
    """The steps and the learning rate at each."""
    if isinstance(recipe, FinetuneRecipe):
        plan = FinetuneSchedule.of(recipe, COCO)
        return plan.steps, plan.learning_rate
    pretraining = PretrainSchedule.of(recipe, IMAGENET)
    return pretraining.steps, pretraining.learning_rate


@styled()
def schedules(recipes: dict[str, PretrainRecipe | FinetuneRecipe]) -> Figure:
    """The learning rate of each recipe over its steps, one panel each."""
    rows = math.ceil(len(recipes) / COLUMNS)
    figure = blank(3.4 * COLUMNS, 1.9 * rows)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, recipe) in zip(grid, recipes.items(), strict=False):
        steps, rate = schedule(recipe)
        at = sorted({round(share * steps / POINTS) for share in range(POINTS)})
        pretrains = isinstance(recipe, PretrainRecipe)
        axes.plot([step / 1000 for step in at], [rate(step) for step in at], color=PALETTE[0 if pretrains else 1])
        axes.set_title(name, fontsize=11)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=9)
        axes.locator_params(nbins=4)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(True, axis="y")
    for axes in grid[len(recipes) :]:
        axes.set_axis_off()
    figure.supxlabel("thousand steps", fontsize=13)
    figure.supylabel("learning rate", fontsize=13)
    return figure


def page(recipes: dict[str, PretrainRecipe | FinetuneRecipe]) -> str:
    """The Markdown page."""
    parts = [HEAD, "## Pretraining\n", *_table(recipes, PretrainRecipe)]
    parts += ["\n## Fine-tuning\n", *_table(recipes, FinetuneRecipe)]
    parts += [
        "\n## Learning rates\n",
        f"Pretraining (blue) on ImageNet's {IMAGENET:,} images, fine-tuning (red) on COCO's {COCO:,}; small recipes "
        "are left out.\n",
    ]
    parts += ["![The learning rate of each recipe](figures/schedules.png)", "\n## The papers' tables, row by row\n"]
    parts += ["A start that boxless does not pretrain is given in words. `--weights` is what the start left.\n"]
    for paper in published.papers():
        parts += [f"### {paper.title}\n", *([f"{paper.note}\n"] if paper.note else [])]
        for table in paper.tables:
            parts += _rows(table)
    return "\n".join(parts).rstrip("\n") + "\n"


def _table(recipes: dict[str, PretrainRecipe | FinetuneRecipe], kind: type) -> list[str]:
    lines = ["| recipe | what | parameters | batch | length | peak rate | optimiser | papers |", "|" + "---|" * 8]
    texts = docstrings()
    for name, recipe in recipes.items():
        if isinstance(recipe, kind):
            steps, rate = schedule(recipe)
            peak = max(rate(round(share * steps / POINTS)) for share in range(POINTS))
            what = texts[name].partition("\n")[0]
            places = "; ".join(published.places_of(name))
            iterations = getattr(recipe, "iterations", None)
            length = f"{iterations:,} steps" if iterations else f"{recipe.epochs:g} epochs"
            lines.append(
                f"| `{name}` | {what} | {parameters(recipe) / 1e6:.1f} | {recipe.batch_size} | {length} | {peak:.2g} | "
                f"{recipe.optim.name} | {places} |"
            )
    return lines


def _rows(table: published.Table) -> list[str]:
    transfer = f"`boxless {table.transfer} {table.data}`"
    lines = [f"**Table {table.number}**: {table.what}; pretrained on {table.pretrained_on}. {transfer}\n"]
    lines += [f"{table.note}\n"] if table.note else []
    lines += [
        f"| row | start | {' | '.join(table.scores)} |".replace("|  |", "|"),
        "|" + "---|" * (2 + len(table.scores)),
    ]
    for row in table.rows:
        start = row.pretraining if row.recipe is None else f"`--recipe {row.start}`"
        scores = ["" if score is None else f"{score:.1f}" for score in row.scores]
        lines.append("| " + " | ".join([row.name, start.replace("--weights", "`--weights`"), *scores]) + " |")
    return [*lines, ""]


def all_recipes() -> dict[str, PretrainRecipe | FinetuneRecipe]:
    """The recipes of pretraining and fine-tuning by name."""
    loaded = {name: load(name, object) for name in names()}
    kinds = (PretrainRecipe, FinetuneRecipe)
    ordered = [(name, recipe) for kind in kinds for name, recipe in loaded.items() if isinstance(recipe, kind)]
    return {name: recipe for name, recipe in ordered if isinstance(recipe, kinds)}


if __name__ == "__main__":
    shipped = all_recipes()
    (HERE / "recipes.md").write_text(page(shipped), encoding="utf-8")
    with styled():
        papers = {name: recipe for name, recipe in shipped.items() if not name.endswith("-small")}
        schedules(papers).savefig(HERE / "figures" / "schedules.png", dpi=100, metadata={"Software": None})
