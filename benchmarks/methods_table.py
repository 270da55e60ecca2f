"""The page docs/methods.md, from what benchmarks/methods.py measured and what recipes and modules say of themselves."""

import inspect
import re
import statistics
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import torch

from boxless.detectors.trunk import Trunk
from boxless.methods.all import METHODS
from boxless.recipes.load import load, names
from boxless.recipes.schema import PretrainRecipe

Rows = dict[str, dict[str, Any]]

GROUPS = {
    "Whole images": ("byol", "simclr", "moco", "barlow", "vicreg", "dino", "swav"),
    "Cells of feature maps": ("densecl", "pixpro", "self-emd", "lc-byol", "lc-dino"),
    "Patches": ("detco",),
    "Boxes": ("soco", "soco-star", "soco-c4", "joint"),
    "DETR's transformer": ("up-detr",),
}
"""Methods by what they compare."""

GOALS = (
    ("lc-byol", "byol", 1.05),
    ("lc-byol-two-crops", "byol", None),
    ("self-emd", "byol", None),
    ("self-emd-two-views", "byol", 1.10),
    ("detco", "moco", 1.80),
    ("soco", "byol", None),
    ("joint", "byol", None),
)
"""Steps over other steps, and the largest ratio that was the goal."""

SILENT = re.compile(r"leaves? open|not said|paper does not|no paper has", re.IGNORECASE)
"""Words of a paragraph about choices that the paper leaves open."""


def page(recipes: dict[str, PretrainRecipe], cost: dict[str, Any], health: dict[str, Any]) -> str:
    blocks = ["# Methods", *_introduction(cost, health), *_table(recipes, cost["rows"], health)]
    blocks += ["## Step times compared", *_goal_table(cost["rows"])]
    blocks += ["## Where papers are silent", _wrapped(_SILENT_INTRODUCTION)]
    for group, methods in GROUPS.items():
        blocks += [f"### {group}", *_open_points(recipes, methods)]
    return "\n\n".join(blocks) + "\n"


def _introduction(cost: dict[str, Any], health: dict[str, Any]) -> list[str]:
    c, h = cost["settings"], health["settings"]
    texts = [
        "This page lists what each method trains, its paper, the cost of a step, and whether its small recipe learns "
        "on real images. It is written by `python benchmarks/methods.py table` from "
        "`benchmarks/results/methods_*.json`. It does not say which method makes the better detector: use "
        "`boxless compare` for that."
    ]
    if c:
        turns = [len(row.get("turns", ())) for row in cost["rows"].values()]
        loads = [turn["load"] for row in cost["rows"].values() for turn in row.get("turns", ())]
        processor = c["gpu"] or c["processor"]
        clock = "CPU seconds of one thread" if c["threads"] == 1 and not c["gpu"] else f"{c['threads']} threads"
        texts.append(
            f"**Step time and memory**: `python benchmarks/methods.py cost --arch {c['arch']} --size {c['size']} "
            f"--batch {c['batch']} --repeats {max(turns)} --threads {c['threads']}` on {processor} ({clock}, "
            f"{c['precision']}, PyTorch {c['torch']}). Every method has the trunk of its paper's recipe, full views of "
            f"{c['size']} px and SGD; loading and proposals are not included. Turns per method: {_span(turns, 'd')}, "
            "each the third step of a new process, with methods taking turns; ratios are paired by turn and given with "
            "their range. Memory is the peak above what the process held before the model was built. Other programs on "
            f"the machine were not controlled (load {_span(loads, '.1f')} during the turns)."
        )
    if h:
        texts.append(
            f"**Health**: `python benchmarks/methods.py health --steps {h['steps']} --size {h['size']} --batch "
            f"{h['batch']}` with --data {h['data']} ({h['images']} images), on {h['gpu'] or h['processor']}: the "
            "`-small` recipe of each method, one run each (seed 0). Spread is 1 if embeddings "
            "cover the sphere evenly and 0 if all are the same; effective rank is at most the number of embeddings "
            "in a batch, of images or of boxes. Both are measured on single batches, the first and the last; the loss "
            "is the mean of the first and of the last ten steps. So few steps can only show a collapse (the loss rises "
            "while a queue fills), and other seeds were not run."
        )
        texts.append(_loaded(health["rows"]))
    return [_wrapped(text) for text in texts]


def _loaded(rows: Rows) -> str:
    finished = {name: row for name, row in rows.items() if "loaded" in row}
    lacking = [
        f"{name} ({part} {share:.0%})"
        for name, row in finished.items()
        for part, share in row["loaded"].items()
        if share < 1
    ]
    told = "completely except for " + ", ".join(lacking) if lacking else "completely"
    return (
        f"The trained parts of each of the {len(finished)} runs were then loaded {told} into the detector that they "
        "are for (Faster R-CNN; DETR for up-detr)."
    )


def _table(recipes: dict[str, PretrainRecipe], cost: Rows, health: dict[str, Any]) -> list[str]:
    shipped = {name: load(name, object) for name in names()}
    head = [
        *("method", "trains", "paper", "recipes", "step time relative to BYOL", "peak memory, MiB"),
        "health: spread, effective rank, loss",
    ]
    lines = [_row(head), _row(["---"] * len(head))]
    for name in (name for methods in GROUPS.values() for name in methods):
        own = [k for k, r in shipped.items() if isinstance(r, PretrainRecipe) and r.method.name == name]
        lines.append(
            _row(
                [
                    f"`{name}`",
                    ", ".join(trained(recipes[name])),
                    paper(recipes[name]),
                    ", ".join(f"`{each}`" for each in own),
                    _ratio_text(cost, name, "byol"),
                    _memory(cost.get(name, {})),
                    _health(health["rows"].get(name, {})),
                ]
            )
        )
    assert set(METHODS) == {name for methods in GROUPS.values() for name in methods}
    return ["\n".join(lines)]


def trained(recipe: PretrainRecipe) -> Sequence[str]:
    with torch.device("meta"):  # shapes alone
        return recipe.method.build(Trunk(recipe.trunk)).trains


def paper(recipe: PretrainRecipe) -> str:
    """Name, arXiv link, authors and year from the first line of the module."""
    line = _docstring(recipe).splitlines()[0]
    authors = re.search(r"\(([^(),]+ et al\.)(?:, (\d{4}))?", line)
    if authors is None:
        return "none"
    number = re.search(r"\d{4}\.\d{5}", line)
    title = line.split(":")[0]
    linked = f"[{title}](https://arxiv.org/abs/{number[0]})" if number else title
    return f"{linked}, {' '.join(filter(None, authors.groups()))}"


def ratio(rows: Rows, row: str, other: str) -> tuple[float, float, float] | None:
    """Median, least and largest of a row's step time over another's, paired by turn."""
    own, base = ([turn["seconds"] for turn in rows.get(key, {}).get("turns", ())] for key in (row, other))
    ratios = [a / b for a, b in zip(own, base, strict=False)]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def goals(rows: Rows) -> list[tuple[str, str, str, str]]:
    """(step, over, ratio, goal) of the pairs that were measured."""
    found = []
    for row, other, most in GOALS:
        measured = ratio(rows, row, other)
        if measured is None:
            continue
        goal = "" if most is None else f"at most {most:.2f}: {'met' if measured[0] <= most else 'missed'}"
        if row == "soco":
            goal = f"its views have {rows[row]['pixels'] / rows[other]['pixels']:.3f} times the pixels"
        found.append((row, other, _ratio_text(rows, row, other), goal))
    return found


def _goal_table(rows: Rows) -> list[str]:
    found = goals(rows)
    if not found:
        return ["Not measured."]
    lines = [_row(["step of", "over", "ratio", "goal"]), _row(["---"] * 4), *(_row(each) for each in found)]
    note = (
        "`lc-byol` has two views, the whole image and a crop; `lc-byol-two-crops` is `method.crops=2`, "
        "`self-emd-two-views` is `method.third_view=false`."
    )
    return ["\n".join(lines), _wrapped(note)]


_SILENT_INTRODUCTION = (
    "This section quotes from the modules what a paper leaves open and what was chosen. If paper and code differ, "
    "boxless follows the paper and offers the code's way as an option where it matters; the head of each module in "
    "`src/boxless/methods/` lists these differences."
)


def _open_points(recipes: dict[str, PretrainRecipe], methods: Sequence[str]) -> list[str]:
    blocks, seen = [], set()
    for name in methods:
        docstring = _docstring(recipes[name])
        points = silent(docstring)
        if not points or docstring in seen:
            continue
        seen.add(docstring)
        first, *rest = points
        blocks += [_wrapped(f"**{_title(docstring, name)}.** {first}"), *rest]
    return blocks or ["Nothing that the modules note."]


def silent(docstring: str) -> list[str]:
    """The paragraphs of a docstring that are about open choices, each with the list that belongs to it."""
    blocks = docstring.split("\n\n")
    chosen: list[str] = []
    for number, block in enumerate(blocks):
        follows = block.startswith("- ") and bool(chosen) and chosen[-1] == blocks[number - 1]
        if follows or SILENT.search(block):
            chosen.append(block)
    return chosen


def _title(docstring: str, name: str) -> str:
    line = docstring.splitlines()[0]
    return line.split(":")[0] if " et al." in line else name


def _docstring(recipe: PretrainRecipe) -> str:
    return inspect.cleandoc(sys.modules[type(recipe.method).__module__].__doc__ or "")


def _ratio_text(rows: Rows, row: str, other: str) -> str:
    measured = ratio(rows, row, other)
    if measured is None:
        return "not measured"
    middle, least, most = measured
    return f"{middle:.2f}" if least == most else f"{middle:.2f} ({least:.2f} to {most:.2f})"


def _memory(row: dict[str, Any]) -> str:
    turns = row.get("turns", ())
    return f"{statistics.median(turn['memory'] for turn in turns):,.0f}" if turns else "not measured"


def _health(row: dict[str, Any]) -> str:
    if "verdict" not in row:
        return row.get("failed", "not measured")
    (spread, spread_end), (rank, rank_end) = row["spread"], row["rank"]
    loss, loss_end = row["loss"]
    measures = f"{spread:.2f} to {spread_end:.2f}, {rank:.1f} to {rank_end:.1f}, {loss:.4g} to {loss_end:.4g}"
    return f"{row['verdict']}: {measures}"


def _span(values: Sequence[float], form: str) -> str:
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)
