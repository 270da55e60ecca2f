"""The papers' tables: which recipes make each row, and the score that the paper has for it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

WITHOUT_RECIPE = {"none": "from scratch", "supervised": "--weights resnet50-imagenet.pth"}
"""Starts that are not pretrained by boxless, in words."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: as in the paper.
        start: none, supervised, or a recipe of `boxless pretrain` and the flags that differ from it.
        scores: percent, in the table's order; None where the paper has none.
    """

    name: str
    start: str
    scores: tuple[float | None, ...]

    @property
    def recipe(self) -> str | None:
        """The recipe that it is pretrained with."""
        return None if self.start in WITHOUT_RECIPE else self.start.split()[0]

    @property
    def pretraining(self) -> str:
        """The command that pretrains, or words where there is none."""
        if self.recipe is None:
            return WITHOUT_RECIPE[self.start]
        return f"boxless pretrain --recipe {self.start} --data images/ --out runs/{self.recipe}"


@dataclass(frozen=True)
class Table:
    """A table of a paper, or the part of it that one protocol measures.

    Attributes:
        paper: its short name, such as soco.
        number: of the table, and of the part.
        what: detector and data.
        pretrained_on: the images without labels.
        transfer: the command that measures, without data and weights: a name, and flags.
        data: the flags that name the labelled images.
        scores: names of the columns.
        note: what to know before comparing with it.
        rows: those of methods that boxless has.
    """

    paper: str
    number: str
    what: str
    pretrained_on: str
    transfer: str
    data: str
    scores: tuple[str, ...]
    note: str
    rows: tuple[Row, ...]

    @property
    def recipe(self) -> str | None:
        """The recipe of the transfer; a probe has none."""
        words = self.transfer.split()
        return words[words.index("--recipe") + 1] if "--recipe" in words else None

    def command(self, row: Row) -> str:
        """The command that measures a row."""
        weights = "" if row.recipe is None else f" --weights runs/{row.recipe}"
        if row.start == "supervised":
            weights = f" {WITHOUT_RECIPE[row.start]}"
        return f"boxless {self.transfer} {self.data}{weights} --out runs/detector"


@dataclass(frozen=True)
class Paper:
    """A paper and its tables, as far as boxless has the methods."""

    name: str
    title: str
    note: str
    tables: tuple[Table, ...]


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, in the order of `published.yaml`."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(
        Paper(
            paper["paper"],
            paper["title"],
            paper.get("note", ""),
            tuple(_table(paper, table, content["data"]) for table in paper["tables"]),
        )
        for paper in content["papers"]
    )


def _table(paper: dict[str, Any], table: dict[str, Any], data: dict[str, str]) -> Table:
    rows = tuple(Row(name, start, tuple(scores)) for name, start, scores in table["rows"])
    return Table(
        paper["paper"],
        table["table"],
        table["what"],
        table.get("pretrained_on", paper["pretrained_on"]),
        table["transfer"],
        data[table["labels"]],
        tuple(table["scores"]),
        table.get("note", ""),
        rows,
    )


def places_of(recipe: str) -> list[str]:
    """The tables of each paper that a recipe pretrains or measures: `soco 1, 9`."""
    places = []
    for each in papers():
        tables = [table for table in each.tables if recipe in {table.recipe, *(row.recipe for row in table.rows)}]
        numbers = dict.fromkeys(table.number.partition(",")[0] for table in tables)
        places += [f"{each.name} {', '.join(numbers)}"] if numbers else []
    return places
