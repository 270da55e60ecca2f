"""The table of a comparison: mean, spread over the seeds, and gain over the reference, in words too."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from boxless.errors import UserError
from boxless.files import write_text
from boxless.plots.label_efficiency import label_efficiency
from boxless.plots.style import save

REFERENCE = "none"
"""The word for random weights: the start from scratch, which gains are measured over."""
SCRATCH = "from scratch"
"""Its name in tables and figures."""
UNLABELLED = "+unlabelled"
"""Ending of a start whose fine-tunings train themselves on the images without labels too."""


_PLACE = re.compile(r"finetune/([^/]+/)?[^/]+/(labels-\d(\.\d+)?(e-\d+)?|shots-\d+)/seed-\d+")


def finetuning_recipes(folder: Path) -> list[Path]:
    """The recipe.yaml of a comparison's fine-tunings, finetune/DETECTOR/START/labels-0.1/seed-0 (or shots-5/seed-0).

    Older folders have no detector.
    """
    files = folder.glob("finetune/**/seed-*/recipe.yaml")
    return sorted(file for file in files if _PLACE.fullmatch(file.parent.relative_to(folder).as_posix()))


def is_comparison(folder: Path) -> bool:
    """Return whether boxless compare wrote a folder, perhaps without finishing; names alone do not show it."""
    if (folder / "comparison.csv").is_file() or finetuning_recipes(folder):
        return True
    return any(folder.glob("pretrain/*/recipe.yaml")) and not any(folder.glob("finetune/**/recipe.yaml"))


@dataclass(frozen=True, order=True)
class Amount:
    """Labels of a cell: a share of the images, 0..1, or else boxes per class."""

    fraction: float = 1.0
    shots: int = 0

    @staticmethod
    def of_folder(name: str) -> "Amount":
        """The amount of a folder of cells, such as labels-0.1 or shots-5."""
        kind, _, number = name.partition("-")
        return Amount(shots=int(number)) if kind == "shots" else Amount(float(number))

    @property
    def folder(self) -> str:
        """Name of the folder of its cells."""
        return f"labels-{self.fraction:g}" if not self.shots else f"shots-{self.shots}"

    @property
    def brief(self) -> str:
        """The amount behind a number of images: 10% or 5 shots."""
        return f"{self.fraction:.0%}" if not self.shots else f"{self.shots} shot{'s' * (self.shots > 1)}"

    def __str__(self) -> str:
        return f"{self.fraction:.0%} of the labels" if not self.shots else self.brief


def amounts_of(label_fraction: str | None, shots: str | None) -> list[Amount]:
    """Amounts of labels from the lists that a user gives, in ascending order; a tenth of the images by default.

    Raises:
        UserError: both lists, or no numbers that are possible.
    """
    if shots is None:
        words = "0.1" if label_fraction is None else str(label_fraction)
        amounts = _numbers(words, lambda word: Amount(float(word)))
        if amounts is None or not all(0 < amount.fraction <= 1 for amount in amounts):
            raise UserError(f"label_fraction: {words!r}; expected numbers above 0 and up to 1, like 0.05,0.1")
        return amounts
    if label_fraction is not None:
        raise UserError("shots: chooses boxes instead of a share of the images; leave out label_fraction")
    amounts = _numbers(str(shots), lambda word: Amount(shots=int(word)))
    if amounts is None or min(amount.shots for amount in amounts) < 1:
        raise UserError(f"shots: {str(shots)!r}; expected numbers of boxes per class like 1,5,10")
    return amounts


def _numbers(words: str, amount: Callable[[str], Amount]) -> list[Amount] | None:
    try:
        return sorted({amount(word) for word in words.split(",")})
    except ValueError:
        return None


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a detector, a start, an amount of labels, a seed, and what came out."""

    detector: str
    method: str
    fraction: float
    images: int
    seed: int
    scores: dict[str, float]
    seconds: float
    shots: int = 0

    @property
    def amount(self) -> Amount:
        """Labels to learn from."""
        return Amount(self.fraction, self.shots)


@dataclass(frozen=True)
class Row:
    """The cells of one detector, one start and one amount of labels, over the seeds.

    Attributes:
        detector: the fine-tuned detector.
        method: the start.
        amount: share of the labels, or boxes per class.
        images: labelled images; their mean where the seeds' draws of boxes differ.
        n: seeds.
        mean: score name -> mean.
        spread: score name -> standard deviation over the seeds (nan for one seed).
        gain: in AP over the reference with the same detector and seeds' labels; None for the reference itself.
        over: the reference: the start from scratch or, with +unlabelled behind the start, the start without it.
        gains: the gain of each seed; empty for the reference.
        interval: half width of the gain's interval, at 95 % for all gains of a comparison together; nan where no gain
            has two seeds.
    """

    detector: str
    method: str
    amount: Amount
    images: int
    n: int
    mean: dict[str, float]
    spread: dict[str, float]
    gain: float | None
    gains: tuple[float, ...] = ()
    interval: float = math.nan
    over: str = REFERENCE

    @property
    def verdict(self) -> str:
        """Description of the gain."""
        if self.gain is None:
            return "reference" if self.method == REFERENCE else ""
        if math.isnan(self.interval):
            return "one seed: cannot tell"
        if abs(self.gain) <= self.interval:
            if self.agreed and len(self.gains) == 2:
                return f"both seeds {self.agreed}: too few to tell"
            return "within noise"
        than = "" if self.over == REFERENCE else f" than {self.over}"
        return ("better" if self.gain > 0 else "worse") + than

    @property
    def agreed(self) -> str:
        """`gained` or `lost` if every seed did; empty if they differ."""
        signs = {math.copysign(1, gain) for gain in self.gains if gain}
        return "" if len(signs) != 1 or 0 in self.gains else "gained" if 1 in signs else "lost"


def summarize(cells: Sequence[Cell]) -> list[Row]:
    """Cells as rows, by detector, share and start."""
    rows = []
    for detector in dict.fromkeys(cell.detector for cell in cells):
        for amount in sorted({cell.amount for cell in cells}):
            group = [cell for cell in cells if cell.detector == detector and cell.amount == amount]
            methods = list(dict.fromkeys(cell.method for cell in group))
            for method in methods:
                plain = method.removesuffix(UNLABELLED)
                over = plain if plain != method and plain in methods else REFERENCE
                reference = {cell.seed: cell.scores["AP"] for cell in group if cell.method == over}
                rows.append(_row([cell for cell in group if cell.method == method], reference, over))
    return [replace(row, interval=_half_width(row, rows)) for row in rows]


def _row(group: Sequence[Cell], reference: dict[int, float], over: str) -> Row:
    """Cells that differ in their seed alone; `reference`: seed -> AP of the start `over` with the same labels."""
    first, n = group[0], len(group)
    gains = [cell.scores["AP"] - reference[cell.seed] for cell in group if cell.seed in reference]
    gains = [] if first.method == REFERENCE else gains
    scores = {name: [cell.scores[name] for cell in group] for name in first.scores}
    return Row(
        first.detector,
        first.method,
        first.amount,
        round(statistics.fmean(cell.images for cell in group)),
        n,
        {name: statistics.fmean(values) for name, values in scores.items()},
        {name: float(np.std(values, ddof=1)) if n > 1 else math.nan for name, values in scores.items()},
        statistics.fmean(gains) if gains else None,
        tuple(gains),
        over=over,
    )


def _half_width(row: Row, rows: Sequence[Row]) -> float:
    """Half width of the interval of a row's gain among those of all rows.

    Few seeds say little of how much gains differ by chance, so the variance over seeds is pooled over all gains of the
    detector, with their degrees of freedom; or, where it is larger, over those on as many labels, since few labels may
    differ more. The level is Bonferroni's: 95 % for all gains of the comparison together.
    """
    several = [each for each in rows if each.detector == row.detector and len(each.gains) > 1]
    if not row.gains or not several:
        return math.nan
    alike = [each for each in several if each.amount == row.amount]
    variance = max(_pooled(several), _pooled(alike or several))
    freedom = sum(len(each.gains) - 1 for each in several)
    tests = sum(each.gain is not None for each in rows)
    return float(student_t.ppf(1 - 0.025 / tests, freedom)) * math.sqrt(variance / len(row.gains))


def _pooled(rows: Sequence[Row]) -> float:
    """Variance of gains over seeds, pooled over rows with two seeds or more."""
    squares = [statistics.variance(row.gains) * (len(row.gains) - 1) for row in rows]
    return math.fsum(squares) / sum(len(row.gains) - 1 for row in rows)


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, in percent."""
    several = len({row.detector for row in rows}) > 1
    names = [*(["detector"] if several else []), "start", "labelled images", "AP", "AP50", "AP75"]
    names += ["gain in AP (95 %)", "seeds", ""]
    lines = [f"| {' | '.join(names)} |".replace("|  |", "| |"), "|" + "---|" * len(names)]
    for row in rows:
        entries = [
            *([row.detector] if several else []),
            SCRATCH if row.method == REFERENCE else row.method,
            f"{row.images} ({row.amount.brief})",
            *(f"{100 * row.mean[name]:.1f} ± {100 * row.spread[name]:.1f}" for name in ("AP", "AP50", "AP75")),
            "" if row.gain is None else f"{100 * row.gain:+.1f} ± {100 * row.interval:.1f}",
            str(row.n),
            row.verdict,
        ]
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines).replace("± nan", "")


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns, name -> values; each score has its mean and, under NAME_std, its spread over the seeds."""
    entries = [
        {
            "detector": row.detector,
            "method": row.method,
            "fraction": row.amount.fraction,
            "shots": row.amount.shots,
            "images": row.images,
            "seeds": row.n,
            **row.mean,
            **{f"{name}_std": spread for name, spread in row.spread.items()},
            "gain": row.gain,
            "over": row.over,
            "interval": row.interval,
            "verdict": row.verdict,
        }
        for row in rows
    ]
    return {name: [entry[name] for entry in entries] for name in entries[0]} if entries else {}


NOTE = (
    "± is the standard deviation over seeds; a seed sets the choice of labelled images, the new layers and the order "
    "of images. The gain is over training from scratch or, with +unlabelled, over the same start without it; it is "
    "paired by seed. Its interval holds at 95 % for all gains of the table together (t distribution, Bonferroni), by "
    "the spread of all gains of a detector. Each method was pretrained once, so the spread does not hold the chance of "
    "pretraining itself."
)


def write_table(out: Path, cells: Sequence[Cell], rows: Sequence[Row], remarks: Sequence[str] = ()) -> None:
    """comparison.csv, comparison.md with remarks and a figure for each detector, into a folder."""
    text = io.StringIO()
    scores = dict.fromkeys(name for cell in cells for name in cell.scores)
    shots = ["shots"] if any(cell.shots for cell in cells) else []
    columns = ["detector", "method", "fraction", *shots, "images", "seed", *scores, "seconds"]
    writer = csv.DictWriter(text, columns, restval=math.nan, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**vars(cell), **cell.scores} for cell in cells)
    write_text(out / "comparison.csv", text.getvalue())
    write_text(out / "comparison.md", "\n\n".join([table(rows), NOTE, *remarks]) + "\n")
    for name, figure, caption in efficiency_figures(cells):
        save(figure, out / "figures" / name, caption)


def read_table(file: Path) -> list[Cell]:
    """The cells of a comparison.csv that `write_table` wrote; older ones do not name their only detector.

    Raises:
        UserError: if it is none; OSError if it cannot be read.
    """
    own = ("detector", "method", "fraction", "shots", "images", "seed", "seconds")
    try:
        return [
            Cell(
                row.get("detector") or "detector",
                row["method"],
                float(row["fraction"]),
                int(row["images"]),
                int(row["seed"]),
                {key: float(value) for key, value in row.items() if key not in own},
                float(row["seconds"]),
                int(row["shots"]) if row.get("shots") else 0,
            )
            for row in csv.DictReader(file.read_text().splitlines())
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: is not a table of boxless compare ({error}); repeat its command") from error


def efficiency_figures(cells: Sequence[Cell]) -> Iterator[tuple[str, Figure, str]]:
    """AP over the amount of labels, a figure for each detector: its name, itself and what it shows."""
    detectors = list(dict.fromkeys(cell.detector for cell in cells))
    for detector in detectors:
        entries = [
            {**vars(cell), **cell.scores, "method": SCRATCH if cell.method == REFERENCE else cell.method}
            for cell in cells
            if cell.detector == detector
        ]
        name = "label-efficiency" if len(detectors) == 1 else f"label-efficiency-{detector}"
        starts = ", ".join(dict.fromkeys(str(entry["method"]) for entry in entries))
        against = "labelled boxes per class" if entries[0]["shots"] else "the number of labelled images"
        caption = f"AP of {detector} against {against}, for {starts}; each dot is one fine-tuning."
        yield name, label_efficiency(entries), caption
