"""Write the tables and plots of docs/studies.md from the cells in studies/results.

python docs/make_studies.py

`studies/results/NAME.csv` is the comparison.csv of a study's folder. Its table and plot go between the page's lines
`<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import csv
import math
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import f as fisher_f
from scipy.stats import false_discovery_control, ttest_1samp, ttest_ind
from scipy.stats import t as student_t

from boxless.files import write_text
from boxless.plots.style import INK, MUTED, PALETTE, blank, note, save, styled
from boxless.tasks.compare_table import REFERENCE, Cell, Row, summarize

HERE = Path(__file__).parent
RESULTS = HERE.parent / "studies" / "results"
FIGURES = HERE / "figures" / "studies"
SCORES = "AP", "AP50", "AP75"
MERGED = {"scenes": ("scenes-cluttered", "scenes-iconic")}
"""Studies of two folders: the second's starts are called as in `byol-iconic`."""
IN_ORDER = {
    *("soco-parts", "soco-boxes", "lc-loss", "self-emd", "detco"),
    *("head-steel", "head-steel-longer", "head-scenes"),
}
"""Studies whose starts stand in the order that the command named them in, not the best first."""
PAIRS = (
    # what a paper puts its method above; of joint, which has no paper, what it adds to
    ("soco", "byol"),
    ("lc-byol", "byol"),
    ("self-emd", "byol"),
    ("pixpro", "byol"),
    ("detco", "moco"),
    ("densecl", "moco"),
    ("soco-star", "soco"),
    ("joint", "soco"),
    ("soco-6", "byol"),
    ("lc-byol-9", "byol"),
    ("self-emd-7", "byol"),
    ("detco-8", "moco-18"),
    ("densecl-18", "moco-18"),
    # rung on rung
    ("boxes", "whole-image"),
    ("fpn", "boxes"),
    ("head", "fpn"),
    ("levels", "head"),
    ("jitter", "levels"),
    ("soco", "jitter"),
    ("soco", "whole-image"),
    ("soco", "body"),
    ("soco", "soco-backbone"),
    ("soco", "soco-backbone-scenes"),
    ("soco", "one-box"),
    ("eight-boxes", "soco"),
    ("soco", "random-boxes"),
    ("lc-byol", "lc-weak"),
    ("lc-byol", "lc-strong"),
    ("lc-byol", "lc-distance"),
    ("lc-distance", "byol"),
    ("byol", "emd-mean"),
    ("emd-vector", "emd-mean"),
    ("self-emd", "emd-vector"),
    ("detco", "detco-c5"),
    ("detco", "detco-global"),
    ("detco", "detco-no-cross"),
    # cluttered against iconic
    ("byol-iconic", "byol"),
    ("self-emd-iconic", "self-emd"),
    ("soco-iconic", "soco"),
    ("body-iconic", "body"),
    ("body-iconic", "soco-iconic"),
    # what the head knows, and how large its outputs are
    ("soco", "large-head"),
    ("soco", "matched"),
    ("soco", "large-head-soco"),
    ("large-head-byol", "byol"),
    # going on from weights
    ("byol", "base"),
    ("byol-on-base", "base"),
    ("byol-on-base", "byol"),
    ("soco-on-base", "base"),
    ("soco-on-base", "soco"),
)
"""Starts that are set against each other where a study has both: does the first do better?"""

PAIRS_OF_PRETRAININGS = (
    ("soco", "byol"),
    ("densecl", "byol"),
    ("soco", "densecl"),
    ("soco", "soco-6"),
    ("densecl-18", "densecl"),
    ("densecl-18", "byol"),
    ("densecl-18", "soco-6"),
    ("densecl-60", "densecl-18"),
    ("soco-20", "soco"),
    ("densecl-60", "soco-20"),
    ("densecl-60", "byol"),
)
"""The same for starts that were pretrained more than once."""
MADE_OF_OTHERS = {"matched"}
"""Starts whose pretrainings are those of another start."""

Tested = tuple[str, str, float]
"""A start, what it is set against, and the share of labels."""


def read(file: Path) -> list[Cell]:
    """The cells of a comparison.csv."""
    with file.open(newline="") as lines:
        return [
            Cell(
                line["detector"],
                line["method"],
                float(line["fraction"]),
                int(line["images"]),
                int(line["seed"]),
                {name: float(line[name]) for name in SCORES},
                float(line["seconds"]),
            )
            for line in csv.DictReader(lines)
        ]


def differences(cells: list[Cell], method: str, base: str) -> NDArray[np.float64]:
    """By how much a start's AP is above another's, points of 100: (shares, seeds)."""
    scores = {(cell.method, cell.fraction, cell.seed): 100 * cell.scores["AP"] for cell in cells}
    shares, seeds = sorted({cell.fraction for cell in cells}), sorted({cell.seed for cell in cells})
    return np.array([[scores[method, at, seed] - scores[base, at, seed] for seed in seeds] for at in shares])


def half_widths(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the means' 95 % intervals over the last axis (t distribution)."""
    count = values.shape[-1]
    return np.asarray(student_t.ppf(0.975, count - 1) * values.std(-1, ddof=1) / math.sqrt(count))


def won(apart: NDArray[np.float64]) -> str:
    """In how many cells a difference is above zero."""
    return f"{(apart > 0).sum()} of {apart.size}"


def tested(cells: list[Cell]) -> Iterator[tuple[Tested, NDArray[np.float64]]]:
    """All that a study sets against each other, start, base and share, with the differences (seeds,)."""
    shares, methods = sorted({cell.fraction for cell in cells}), dict.fromkeys(cell.method for cell in cells)
    against = [(method, REFERENCE) for method in methods if method != REFERENCE]
    for method, base in (*against, *((method, base) for method, base in PAIRS if {method, base} <= set(methods))):
        for share, apart in zip(shares, differences(cells, method, base), strict=True):
            yield (method, base, share), apart


def discoveries(page: list[list[Cell]]) -> list[dict[Tested, float]]:
    """The p values of paired t tests, adjusted for all that the page's studies test of their kind: gains, and pairs.

    Adjusted after Benjamini and Hochberg (1995): of what is below 0.05, a twentieth is expected to be chance. What
    stands in several tables counts once.
    """
    gains: dict[tuple[float, ...], float] = {}
    others: dict[tuple[float, ...], float] = {}
    for cells in page:
        for (_, base, _), apart in tested(cells):
            (gains if base == REFERENCE else others)[tuple(apart)] = ttest_1samp(apart, 0.0).pvalue
    adjusted: dict[tuple[float, ...], float] = {}
    for kind in (gains, others):
        adjusted |= dict(zip(kind, false_discovery_control(list(kind.values())).tolist(), strict=True))
    return [{entry: adjusted[tuple(apart)] for entry, apart in tested(cells)} for cells in page]


def studies() -> Iterator[tuple[str, list[Cell]]]:
    """Names and cells of all studies that there are results of."""
    files = {file.stem: read(file) for file in sorted(RESULTS.glob("*.csv"))}
    for name, (first, second) in MERGED.items():
        suffix = second.removeprefix(f"{name}-")
        others = [
            replace(cell, method=f"{cell.method}-{suffix}") for cell in files.pop(second) if cell.method != REFERENCE
        ]
        files[name] = files.pop(first) + others
    yield from files.items()


def ranked(name: str, rows: list[Row]) -> list[str]:
    """The starts of a study but the reference, in their order there."""
    gains: dict[str, list[float]] = {}
    for row in rows:
        if row.gain is not None:
            gains.setdefault(row.method, []).append(row.gain)
    return list(gains) if name in IN_ORDER else sorted(gains, key=lambda method: -float(np.mean(gains[method])))


def table(cells: list[Cell], rows: list[Row], methods: list[str], adjusted: dict[Tested, float]) -> str:
    """A line for each start, a column for each share of labels: AP, and the gain over scratch with its interval."""
    shares = sorted({row.amount.fraction for row in rows})
    found = {(row.method, row.amount.fraction): row for row in rows}
    images = [found[REFERENCE, share].images for share in shares]
    head = [f"{share:.0%} ({count} images)" for share, count in zip(shares, images, strict=True)]
    lines = [f"| start | {' | '.join(head)} | cells won |", "|---" * (2 + len(shares)) + "|"]
    for method in (REFERENCE, *methods):
        entries = []
        for share in shares:
            row = found[method, share]
            ap = f"{100 * row.mean['AP']:.1f} ± {100 * row.spread['AP']:.1f}"
            if row.gain is not None:
                gain = f"{100 * row.gain:+.1f} ± {100 * float(half_widths(np.array(row.gains))):.1f}"
                ap += f", **{gain}**" if adjusted[method, REFERENCE, share] < 0.05 else f", {gain}"
            entries.append(ap)
        if method == REFERENCE:
            lines.append(f"| from scratch | {' | '.join(entries)} | |")
        else:
            lines.append(f"| {method} | {' | '.join(entries)} | {won(differences(cells, method, REFERENCE))} |")
    return "\n".join(lines)


def pairs(cells: list[Cell], adjusted: dict[Tested, float]) -> str:
    """A line for each pair of starts that are set against each other: differences in AP by share, and cells won."""
    shares, methods = sorted({cell.fraction for cell in cells}), {cell.method for cell in cells}
    lines = [f"| pair | {' | '.join(f'{share:.0%}' for share in shares)} | cells won |"]
    lines.append("|---" * (2 + len(shares)) + "|")
    for method, base in PAIRS:
        if not {method, base} <= methods:
            continue
        apart = differences(cells, method, base)
        entries = [
            f"**{mean:+.1f} ± {each:.1f}**" if adjusted[method, base, share] < 0.05 else f"{mean:+.1f} ± {each:.1f}"
            for share, mean, each in zip(shares, apart.mean(1), half_widths(apart), strict=True)
        ]
        lines.append(f"| {method} over {base} | {' | '.join(entries)} | {won(apart)} |")
    return "\n".join(lines)


def in_rows(axes: Axes) -> None:
    """Leave of the axes what rows of dots need."""
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@styled()
def plot(rows: list[Row], cells: list[Cell], methods: list[str]) -> Figure:
    """Gains in AP over scratch: a panel for each share of labels, a row for each start, a dot for each seed."""
    shares = sorted({row.amount.fraction for row in rows})
    found = {(row.method, row.amount.fraction): row for row in rows if row.gain is not None}
    methods = methods[::-1]  # the first on top
    seeds = {method: differences(cells, method, REFERENCE) for method in methods}
    figure = blank(max(7.5, 2.2 + 3.2 * len(shares)), 1.7 + 0.42 * len(methods))
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for place, (axes, share) in enumerate(zip(panels, shares, strict=True)):
        axes.axvline(0, color=MUTED, linewidth=1)
        for height, method in enumerate(methods):
            row = found[method, share]
            gain, interval = 100 * (row.gain or 0.0), 100 * float(half_widths(np.array(row.gains)))
            hue = MUTED if abs(gain) <= interval else PALETTE[0] if gain > 0 else PALETTE[1]
            axes.plot([gain - interval, gain + interval], [height, height], color=hue, linewidth=2)
            axes.plot([gain], [height], "|", color=hue, markersize=15, markeredgewidth=4)
            own = seeds[method][place]
            axes.scatter(own, [height] * len(own), s=30, color=INK, alpha=0.5, linewidth=0, zorder=3)
        count = next(row.images for row in rows if row.amount.fraction == share)
        axes.set_title(f"{share:.0%} of the labels: {count} images", fontsize=13)
        in_rows(axes)
        dots = [dot for of_method in seeds.values() for dot in of_method[place]]
        room = 0.25 * (max(dots) - min(dots))
        axes.set_xlim(min(0, *dots) - room, max(0, *dots) + room)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(-0.6, len(methods) - 0.4)
    note(
        figure,
        "gain in AP over scratch, points of 100\n"
        "dot: a seed; bar, line: mean, 95 % interval (uncorrected); grey: holds 0",
    )
    return figure


def of_pretrainings(cells: list[Cell]) -> dict[str, NDArray[np.float64]]:
    """Gains over scratch, points of 100, of starts that were pretrained more than once: (pretrainings, seeds) each.

    A start's other pretrainings are called as in `soco-seed-1`.
    """
    gains: dict[str, list[NDArray[np.float64]]] = {}
    for method in dict.fromkeys(cell.method for cell in cells if cell.method != REFERENCE):
        gains.setdefault(method.partition("-seed-")[0], []).append(differences(cells, method, REFERENCE)[0])
    return {name: np.stack(of_one) for name, of_one in gains.items()}


def spreads(gains: NDArray[np.float64]) -> tuple[float, float]:
    """Mean squares between pretrainings and of what is left: their ratio is 1 on average where all are equally good.

    Of gains (pretrainings, seeds), by analysis of variance in both; seeds differ in labels too, which is taken out.
    """
    pretrainings, seeds = gains.shape
    of_one, of_seed = gains.mean(1, keepdims=True), gains.mean(0, keepdims=True)
    left = gains - of_one - of_seed + gains.mean()
    degrees = (pretrainings - 1) * (seeds - 1)
    return seeds * float(of_one.var(ddof=1)), float((left**2).sum()) / degrees


def table_of_pretrainings(gains: dict[str, NDArray[np.float64]]) -> str:
    """A line for each start: its pretrainings' gains and their mean, and how far apart they lie."""
    lines = ["| start | gain of each pretraining | mean | SD | SD by fine-tuning alone |", "|---|---|---|---|---|"]
    for name in sorted(gains, key=lambda name: -float(gains[name].mean())):
        means, (_, left) = gains[name].mean(1), spreads(gains[name])
        half = half_widths(means)
        each = ", ".join(f"{mean:+.1f}" for mean in means)
        alone = math.sqrt(left / gains[name].shape[1])
        lines.append(f"| {name} | {each} | {means.mean():+.1f} ± {half:.1f} | {means.std(ddof=1):.1f} | {alone:.1f} |")
    return "\n".join(lines)


def variance_of_pretrainings(gains: dict[str, NDArray[np.float64]]) -> str:
    """What all starts together say of the chance of a pretraining."""
    own = [each for name, each in gains.items() if name not in MADE_OF_OTHERS]
    seeds = own[0].shape[1]
    weights = np.array([len(each) - 1 for each in own])
    between, left = np.average([spreads(each) for each in own], axis=0, weights=weights)
    degrees = int(weights.sum()), int(weights.sum()) * (seeds - 1)
    chance = fisher_f.sf(between / left, *degrees)
    deviation = math.sqrt(max(0.0, between - left) / seeds)
    return (
        f"Over all starts the standard deviation of a pretraining is {deviation:.1f} AP, beside "
        f"{math.sqrt(left):.1f} of a fine-tuning (F = {between / left:.1f} with {degrees[0]} and {degrees[1]} "
        f"degrees of freedom, p = {chance:.2g})."
    )


def pairs_of_pretrainings(gains: dict[str, NDArray[np.float64]]) -> str:
    """A line for each pair of starts: the difference of their pretrainings' means, by Welch's t test."""
    lines = ["| pair | difference | p |", "|---|---|---|"]
    for method, base in PAIRS_OF_PRETRAININGS:
        if {method, base} <= set(gains):
            test = ttest_ind(gains[method].mean(1), gains[base].mean(1), equal_var=False)
            low, high = test.confidence_interval()
            lines.append(
                f"| {method} over {base} | {(low + high) / 2:+.1f} ± {(high - low) / 2:.1f} | {test.pvalue:.2g} |"
            )
    return "\n".join(lines)


@styled()
def plot_of_pretrainings(gains: dict[str, NDArray[np.float64]]) -> Figure:
    """A row for each start: a ring for each pretraining's mean gain, a dot for each fine-tuning."""
    names = sorted(gains, key=lambda name: float(gains[name].mean()))
    figure = blank(8.5, 1.7 + 0.6 * len(names))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=1)
    for height, name in enumerate(names):
        for place, of_one in enumerate(gains[name]):
            hue, level = PALETTE[place], height + 0.22 * (1 - place)
            axes.plot([of_one.min(), of_one.max()], [level, level], color=hue, linewidth=1, alpha=0.5)
            axes.scatter(of_one, [level] * len(of_one), s=22, color=hue, linewidth=0)
            axes.plot([of_one.mean()], [level], "|", color=hue, markersize=13, markeredgewidth=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    in_rows(axes)
    note(
        figure,
        "gain in AP over scratch, points of 100\nhue: a pretraining; dot: a fine-tuning from it; bar: their mean",
    )
    return figure


def wrapped(text: str) -> str:
    """The text in lines as long as the page's."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Fill the page."""
    file = HERE / "studies.md"
    page = file.read_text()
    found_by_name = dict(studies())
    adjusted = discoveries(list(found_by_name.values()))
    for (name, cells), chances in zip(found_by_name.items(), adjusted, strict=True):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"{file}: expected the lines {begin!r} and {end!r}, between which {name} goes")
        minutes = math.fsum(cell.seconds for cell in cells) / 60
        seeds = len({cell.seed for cell in cells})
        if any("-seed-" in cell.method for cell in cells):
            gains = of_pretrainings(cells)
            starts, figure = list(gains), plot_of_pretrainings(gains)
            scores = f"{table_of_pretrainings(gains)}\n\n{wrapped(variance_of_pretrainings(gains))}"
            order, how = pairs_of_pretrainings(gains), "over pretrainings (Welch)"
        else:
            rows = summarize(cells)
            starts = ranked(name, rows)
            figure, scores = plot(rows, cells, starts), table(cells, rows, starts, chances)
            order, how = pairs(cells, chances), "paired by seed"
        save(figure, FIGURES / name, f"Gains in AP over training from scratch, of {', '.join(starts)}.")
        (FIGURES / f"{name}.svg").unlink()
        picture = f"![Gains in AP over training from scratch](figures/studies/{name}.png)"
        order = f"One over another, {how}:\n\n{order}\n\n" if order.count("\n") > 1 else ""
        files = " and ".join(f"`studies/results/{each}.csv`" for each in MERGED.get(name, (name,)))
        facts = wrapped(f"{files}: {len(cells)} fine-tunings, {seeds} seeds, {minutes:.0f} minutes of a core together.")
        page = f"{before}{begin}\n\n{scores}\n\n{order}{facts}\n\n{picture}\n\n{end}{after}"
    write_text(file, page)


if __name__ == "__main__":
    main()
