"""Scores of detectors beyond one number: precision over recall, confusion, and gains class by class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from boxless.evaluation.precision_recall import IOUS, PrecisionRecall
from boxless.plots.style import HEAT, INK, MUTED, PALETTE, blank, colour, name_lines, note, styled

CLASSES = 20
"""Classes drawn by name at most."""


@styled()
def precision_recall_curves(curves: PrecisionRecall, classes: Sequence[str]) -> Figure:
    """A panel per IoU: the mean over the classes, and each class that has objects, by name where they are few."""
    known = np.flatnonzero(~np.isnan(curves.precision).all((0, 1))).tolist()
    named = len(known) <= len(PALETTE) - 1
    figure = blank(13 if named else 11.5, 5.4)
    panels = figure.subplots(1, len(IOUS), sharey=True)
    for axes, iou, means, of_classes in zip(panels, IOUS, curves.means, curves.precision, strict=True):
        for number, label in enumerate(known):
            style: dict[str, Any] = (
                {"color": colour(number), "label": classes[label]} if named else {"color": "#B8B8B8"}
            )
            axes.plot(100 * curves.recall, 100 * of_classes[:, label], linewidth=1.5 if named else 0.8, **style)
        axes.plot(100 * curves.recall, 100 * means, color="black", linewidth=4, label="mean")
        area = f"AP{100 * iou:.0f} {100 * np.nanmean(means):.1f}" if len(known) else "no labelled objects"
        axes.set_title(f"IoU {iou:g} and above: {area}", fontsize=14)
        axes.set_xlabel("recall (%)")
        axes.set(xlim=(0, 100), ylim=(0, 101))
        axes.grid()
    panels[0].set_ylabel("precision (%)")
    if named:
        name_lines(panels[-1])
    else:
        note(figure, f"black: mean of {len(known)} classes; grey: each of them")
    return figure


@styled()
def confusion_matrix(counts: npt.NDArray[np.int64], classes: Sequence[str], score: float) -> Figure:
    """Labelled objects (rows) found as (columns), (C + 1, C + 1): the last row has extra ones, the last column missed.

    Colours are shares of a row. With many classes those are drawn that are mixed up most, or else most frequent.
    """
    wrong = counts - np.diag(np.diagonal(counts))
    mixed = wrong[:-1, :-1].sum(0) + wrong[:-1, :-1].sum(1)
    order = np.lexsort((-counts[:-1].sum(1), -mixed))[:CLASSES]
    shown = np.append(np.sort(order), len(classes))
    part = counts[np.ix_(shown, shown)]
    shares = part / np.maximum(counts[shown].sum(1, keepdims=True), 1)
    side = 3.4 + 0.52 * len(shown)
    figure = blank(side + 1.6, side)
    axes = figure.add_subplot()
    picture = axes.imshow(100 * shares, cmap=HEAT, vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes, label="share of the row (%)", shrink=0.8)
    for (row, column), count in np.ndenumerate(part):
        if count:
            hue = "black" if shares[row, column] > 0.6 else "white"
            axes.annotate(f"{count}", (column, row), ha="center", va="center", color=hue, fontsize=11)
    names = [classes[label] for label in shown[:-1]]
    axes.set_xticks(range(len(shown)), [*names, "missed"], rotation=90 if len(shown) > 8 else 40)
    if len(shown) <= 8:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(shown)), [*names, "nothing"])
    axes.axhline(len(names) - 0.5, color="white", linewidth=3)
    axes.axvline(len(names) - 0.5, color="white", linewidth=3)
    axes.set_xlabel("found as")
    axes.set_ylabel("labelled as")
    few = f", {len(names)} of {len(classes)} classes" if len(names) < len(classes) else ""
    axes.set_title(f"score {100 * score:.0f} and above{few}", fontsize=12, color=MUTED)
    axes.spines[:].set_visible(False)
    return figure


@styled()
def class_gains(gains: Mapping[str, Sequence[float]], name: str, reference: str) -> Figure:
    """A bar for each class: how much AP it gained over the reference, best first; a dot for each of several seeds.

    `gains`: class -> gain of each seed, -1..1. With many classes, those that gained and lost most.
    """
    means = {label: float(np.mean(values)) for label, values in gains.items()}
    ordered = sorted(means, key=lambda label: -means[label])
    half = CLASSES // 2
    shown = ordered if len(ordered) <= CLASSES else [*ordered[:half], *ordered[-half:]]
    figure = blank(10, 1.9 + 0.42 * len(shown))
    axes = figure.add_subplot()
    for height, label in enumerate(shown):
        axes.barh(height, 100 * means[label], color=colour(0 if means[label] >= 0 else 1), height=0.7)
        if len(gains[label]) > 1:
            seeds = 100 * np.array(gains[label])
            axes.scatter(seeds, [height] * len(seeds), s=26, color=INK, edgecolor="white", linewidth=0.8, zorder=3)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1)
    axes.grid(axis="x")
    axes.set_xlabel(f"gain in AP of {name} over {reference} (points)")
    up, down = sum(mean > 0 for mean in means.values()), sum(mean < 0 for mean in means.values())
    seeds_of = max((len(values) for values in gains.values()), default=1)
    spread = f"dots: {seeds_of} seeds" if seeds_of > 1 else "one run each, so no spread is known"
    mean = 100 * float(np.mean(list(means.values())))
    axes.set_title(f"{up} classes up, {down} down, mean {mean:+.1f}; {spread}", fontsize=12, color=MUTED)
    if len(shown) < len(ordered):
        axes.axhline(half - 0.5, color=MUTED, linestyle=":", linewidth=1.5)
        note(figure, f"the {half} classes that gained most and least, of {len(ordered)}")
    return figure
