"""Detections sorted by outcome: correct, extra, missing, of the wrong class (course report, fig. 1)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections
from boxless.evaluation.matching import CORRECT, EXTRA, IGNORED, MISSING, WRONG_CLASS, Matches
from boxless.plots.style import MUTED, blank, colour, draw_box, note, show_image, styled

GROUPS = (CORRECT, EXTRA, MISSING, WRONG_CLASS)
HUES = {CORRECT: colour(0), WRONG_CLASS: colour(3), EXTRA: colour(1), MISSING: "#000000", IGNORED: MUTED}
FEW = 6
"""Boxes that can be told apart in an example."""
CLASSES = 15
"""Classes with a bar: the rest is too small to read."""


@dataclass(frozen=True, eq=False)
class MatchedImage:
    """An image with its labels, its detections and their outcomes.

    Attributes:
        image: (H, W, 3) uint8, perhaps smaller than its source.
        objects: (M, 4), its labelled boxes, px of this image.
        truth: the labels.
        boxes: (N, 4), the detected ones, px of this image.
        found: the detections.
        matches: outcomes of both.
    """

    image: npt.NDArray[np.uint8]
    objects: npt.NDArray[Any]
    truth: LabelledImage
    boxes: npt.NDArray[Any]
    found: Detections
    matches: Matches


def examples(matches: Sequence[Matches], found: Sequence[Detections], group: str, count: int) -> list[int]:
    """The images that show an outcome best: few boxes, mostly of this outcome, by descending score."""
    worth = []
    for row, (matched, detections) in enumerate(zip(matches, found, strict=True)):
        names = [*matched.outcomes, *[MISSING] * len(matched.missing)]
        own = names.count(group)
        scores = detections.scores[matched.kept]
        sure = [float(score) for score, name in zip(scores, matched.outcomes, strict=True) if name == group]
        if own:
            worth.append((len(names) <= FEW, own / len(names), min(own, 3), max(sure, default=0.0), row))
    return [row for *_, row in sorted(worth, reverse=True)[:count]]


@styled()
def outcome_pairs(groups: dict[str, Sequence[MatchedImage]], classes: Sequence[str]) -> Figure:
    """Pairs for each outcome that there is: labels on the left, detections on the right, coloured by the outcome."""
    shown = {name: pairs for name, pairs in groups.items() if pairs} or {CORRECT: []}
    rows = max(1, *(len(pairs) for pairs in shown.values()))
    across = 2 if len(shown) > 1 else 1
    down = -(-len(shown) // across)
    figure = blank(15 if across == 2 else 8, 0.7 + 3.0 * rows * down)
    for part, (name, pairs) in zip(figure.subfigures(down, across, squeeze=False).flat, shown.items(), strict=False):
        part.suptitle(name, color=HUES[name], fontweight="bold", fontsize=17)
        grid = part.subplots(rows, 2, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for (left, right), matched in zip(grid, pairs, strict=False):
            show_image(left, matched.image)
            show_image(right, matched.image)
            _draw_truth(left, matched, classes)
            _draw_found(right, matched, classes)
    note(
        figure,
        "labels on the left, detections with scores on the right; blue: correct, orange: extra, black: missing, "
        "pink: wrong class",
    )
    return figure


def _draw_truth(axes: Axes, matched: MatchedImage, classes: Sequence[str]) -> None:
    outcomes = dict(zip(matched.matches.objects.tolist(), matched.matches.outcomes, strict=True))  # -1 is of no object
    parts = matched.objects, matched.truth.labels, matched.truth.crowd
    for row, (box, label, crowd) in enumerate(zip(*parts, strict=True)):
        hue = HUES[IGNORED] if crowd else HUES[outcomes.get(row, MISSING)]
        draw_box(axes, box, hue, _tag(matched, box, classes[label]), dashed=bool(crowd))


def _draw_found(axes: Axes, matched: MatchedImage, classes: Sequence[str]) -> None:
    drawn: list[tuple[npt.NDArray[Any], str, str]] = []
    named: list[npt.NDArray[Any]] = []
    room = np.array([0.4, 0.08]) * (matched.image.shape[1], matched.image.shape[0])
    for row, outcome in zip(matched.matches.kept, matched.matches.outcomes, strict=True):  # by descending score
        box, text = matched.boxes[row], f"{classes[matched.found.labels[row]]} {100 * matched.found.scores[row]:.0f}"
        free = not any((np.abs(box[:2] - other) < room).all() for other in named)
        drawn.append((box, HUES[outcome], _tag(matched, box, text) if free else ""))
        named += [box[:2]] if drawn[-1][2] else []
    for box, hue, text in reversed(drawn):  # and are on top
        draw_box(axes, box, hue, text)


def _tag(matched: MatchedImage, box: npt.NDArray[Any], text: str) -> str:
    """No name on a narrow box: it would hide the box."""
    return text if box[2] - box[0] >= 0.12 * matched.image.shape[1] else ""


@styled()
def outcome_counts(
    data: LabelledData, found: Sequence[Detections], matches: Sequence[Matches], overlaps: npt.NDArray[Any]
) -> Figure:
    """Outcomes of each class, and how well the detections that were matched with an object cover it.

    `overlaps`: (N,), IoU of each detection with the object that fits it best, whatever their classes; 0 for none.
    """
    counts: dict[str, Counter[int]] = {name: Counter() for name in (CORRECT, WRONG_CLASS, MISSING, EXTRA)}
    for image, detections, matched in zip(data.images, found, matches, strict=True):
        for row, place, outcome in zip(matched.kept, matched.objects, matched.outcomes, strict=True):
            if outcome != IGNORED:
                counts[outcome][int(image.labels[place] if place >= 0 else detections.labels[row])] += 1
        counts[MISSING].update(image.labels[matched.missing].tolist())
    objects = counts[CORRECT] + counts[WRONG_CLASS] + counts[MISSING]
    shown = [label for label, _ in (objects or counts[EXTRA]).most_common(CLASSES)]
    figure = blank(14, max(4.6, 1.6 + 0.42 * len(shown)))
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _bars(left, counts, shown, data.classes)
    more = f", the {len(shown)} most frequent of {len(objects)} classes" if len(objects) > len(shown) else ""
    left.set_title(f"objects to the right, extra detections to the left{more}", fontsize=12, color=MUTED)
    right.hist(overlaps, np.linspace(0, 1, 21), color=colour(5))
    right.axvline(0.5, color=MUTED, linestyle="--", linewidth=1.5)
    right.set_xlabel("IoU with the object that fits best")
    right.set_ylabel("detections")
    right.set_xlim(0, 1)
    right.grid(axis="y")
    right.set_title("right of the dashed line: the place is right", fontsize=12, color=MUTED)
    return figure


def _bars(axes: Axes, counts: dict[str, Counter[int]], shown: list[int], classes: Sequence[str]) -> None:
    heights = np.arange(len(shown))
    ends = np.zeros(len(shown))
    for name, numbers in counts.items():
        widths = np.array([numbers[label] for label in shown], float)
        if name == EXTRA:
            axes.barh(heights, -widths, color=HUES[name], label=name)
            continue
        bars = axes.barh(heights, widths, left=ends, color="#BBBBBB" if name == MISSING else HUES[name], label=name)
        ends = ends + widths
        for bar in bars if name == MISSING else ():
            bar.set(hatch="//", edgecolor="white", linewidth=0)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(heights, [classes[label] for label in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.grid(axis="x")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=12)
