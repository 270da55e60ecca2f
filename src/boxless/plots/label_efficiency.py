"""AP over the number of labelled images: the figure by which pretraining is judged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from sklearn.isotonic import isotonic_regression

from boxless.errors import UserError
from boxless.plots.style import MUTED, blank, colour, styled

Runs = dict[str, dict[float, list[float]]]  # method -> share or number of labels -> AP of each seed, 0..100


@styled()
def label_efficiency(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One line per method over the labelled share: mean, lowest to highest seed as a band, every seed as a dot.

    `rows`: one record per run: method; fraction, a share in (0, 1] or, above 1, a number of images; seed; AP, 0..1;
    where known, images, the number behind a share, for the axis; and shots, boxes per class, instead of a share (of
    all rows or of none). With a single amount of labels there is no line to
    draw: methods are rows, seeds dots, means bars.

    Raises:
        UserError: no rows, or a row lacks one of the keys.
    """
    runs, counts = _grouped(rows)
    fractions = sorted({fraction for by_fraction in runs.values() for fraction in by_fraction})
    shots = any(row.get("shots") for row in rows)
    if len(fractions) == 1:
        return _strips(runs, f"{fractions[0]:g} boxes per class" if shots else _amount(fractions[0], counts))
    if shots:
        return _lines(runs, {count: f"{count:g}" for count in fractions}, "labelled boxes per class")
    ticks = {fraction: _tick(fraction, counts) for fraction in fractions}
    return _lines(runs, ticks, "labelled images" if max(fractions) > 1 else "share and number of labelled images")


def _grouped(rows: Sequence[Mapping[str, Any]]) -> tuple[Runs, dict[float, int]]:
    if not rows:
        raise UserError("label efficiency figure: expected at least one run, found none; run a study first")
    runs: Runs = defaultdict(lambda: defaultdict(list))
    counts: dict[float, int] = {}
    for row in rows:
        missing = [key for key in ("method", "fraction", "seed", "AP") if key not in row]
        if missing:
            raise UserError(f"label efficiency figure: a row lacks {', '.join(missing)}; it has {', '.join(row)}")
        fraction = float(row.get("shots") or row["fraction"])
        runs[str(row["method"])][fraction].append(100 * float(row["AP"]))
        if row.get("images"):
            counts[fraction] = int(row["images"])
    return runs, counts


def _lines(runs: Runs, ticks: dict[float, str], amount: str) -> Figure:
    """One line per method; `ticks`: amount of labels -> its text, `amount`: their name."""
    figure = blank(9.6, 5.6)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ends: list[tuple[float, float, str, str]] = []
    for index, (method, by_fraction) in enumerate(runs.items()):
        hue, xs = colour(index), sorted(by_fraction)
        means = [float(np.mean(by_fraction[x])) for x in xs]
        axes.fill_between(
            xs, [min(by_fraction[x]) for x in xs], [max(by_fraction[x]) for x in xs], color=hue, alpha=0.15, linewidth=0
        )
        axes.plot(xs, means, color=hue, label=method)
        dots = np.array([(x, ap) for x in xs for ap in by_fraction[x]])
        axes.scatter(dots[:, 0], dots[:, 1], s=26, color=hue, edgecolor="white", linewidth=0.8, zorder=3)
        ends.append((xs[-1], means[-1], method, hue))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
    axes.set_xlabel(amount)
    _say(axes, f"line: mean, band: lowest to highest, dot: one run ({_seeds(runs)})")
    _ap_axis(axes.yaxis)
    _label_ends(axes, ends)
    return figure


def _strips(runs: Runs, amount: str) -> Figure:
    """One row per method, for a single amount of labels."""
    figure = blank(9.6, 1.9 + 0.62 * len(runs))
    axes = figure.add_subplot()
    hues = {method: colour(index) for index, method in enumerate(runs)}
    methods = sorted(runs, key=lambda method: float(np.mean(list(runs[method].values()))))
    for height, method in enumerate(methods):
        (aps,) = runs[method].values()
        mean = float(np.mean(aps))
        axes.plot([mean, mean], [height - 0.3, height + 0.3], color=hues[method], linewidth=4, label=method)
        axes.scatter(aps, [height] * len(aps), s=60, color=hues[method], alpha=0.55, linewidth=0, zorder=3)
        axes.annotate(
            f"{mean:.1f}", (max(aps), height), (10, 0), textcoords="offset points", va="center", fontweight="bold"
        )
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(-0.6, len(methods) - 0.4)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _say(axes, f"{amount}; bar: mean, dot: one run ({_seeds(runs)})")
    _ap_axis(axes.xaxis)
    return figure


def _say(axes: Axes, reading: str) -> None:
    """Add a note above the figure, in a lighter colour than the data."""
    axes.set_title(reading, fontsize=12, color=MUTED)


def _seeds(runs: Runs) -> str:
    seeds = [len(aps) for by_fraction in runs.values() for aps in by_fraction.values()]
    if max(seeds) == 1:
        return "1 seed, so no spread is known"
    return f"{max(seeds)} seeds" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)} seeds"


def _tick(fraction: float, counts: dict[float, int]) -> str:
    if fraction > 1:
        return f"{fraction:,.0f}"
    share = f"{100 * fraction:.3g} %"
    return f"{share}\n{counts[fraction]:,}" if fraction in counts else share


def _amount(fraction: float, counts: dict[float, int]) -> str:
    if fraction > 1:
        return f"{fraction:,.0f} labelled images"
    share = f"{100 * fraction:.3g} % of the labels"
    return f"{share} ({counts[fraction]:,} images)" if fraction in counts else share


def _ap_axis(axis: Any) -> None:
    axis.set_label_text("AP (COCO, 0 to 100)")
    axis.set_major_formatter(FuncFormatter(lambda ap, _: f"{ap:g}"))


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each method's name at its line's end, moved apart where two would overlap."""
    low, high = axes.get_ylim()
    line = 0.065 * (high - low)  # height of one line of text, in units of the axis
    ends = sorted(ends, key=lambda end: end[1])
    steps = line * np.arange(len(ends))
    # Least moves that keep the order and a line's distance: isotonic regression of what is left after the steps.
    heights = isotonic_regression(np.array([mean for _, mean, _, _ in ends]) - steps) + steps
    last = max(x for x, _, _, _ in ends)
    for (x, mean, method, hue), height in zip(ends, heights, strict=True):
        moved = abs(height - mean) > 0.2 * line or x < last
        leader = {"arrowstyle": "-", "color": hue, "linewidth": 1, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            method,
            (x, mean),
            (1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=hue,
            fontweight="bold",
            arrowprops=leader if moved else None,
            annotation_clip=False,
        )
