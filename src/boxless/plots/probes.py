"""Plots of probes: scores with their intervals, and matches as arrows."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from boxless.evaluation.correspondence import Pair, cell_places, mirrored_cells
from boxless.evaluation.probes import Score
from boxless.plots.style import INK, MUTED, blank, colour, name_lines, show_image, styled

RIGHT, WRONG = colour(0), colour(1)
ARROWS = 64
"""Matches drawn at most: more hide the image."""


@styled()
def score_bars(scores: Sequence[Score], chance: float) -> Figure:
    """A panel per measure and a bar for each of the weights, with its interval; a dashed line where guessing is."""
    measures = list(dict.fromkeys(score.measure for score in scores))
    names = list(dict.fromkeys(score.weights for score in scores))
    figure = blank(max(9.6, 2.6 + 2.6 * len(measures)), 1.9 + 0.5 * len(names))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    top = max([chance, *(max(s.value, np.nan_to_num(s.high)) for s in scores if not np.isnan(s.value))])
    for axes, measure in zip(panels, measures, strict=True):
        own = {score.weights: score for score in scores if score.measure == measure}
        _bars(axes, [own[name] for name in names])
        axes.axvline(100 * chance, color=MUTED, linestyle="--", linewidth=1.5)
        axes.set_xlim(0, min(118, 124 * top))
        axes.set_xlabel(f"{measure} (%)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)  # the reference on top
    reading = "line: 95 % interval; " if any(not np.isnan(score.low) for score in scores) else ""
    panels[0].set_title(f"{reading}dashed: guessing", fontsize=12, color=MUTED)
    return figure


def _bars(axes: Axes, scores: Sequence[Score]) -> None:
    for height, score in enumerate(scores):
        if np.isnan(score.value):
            continue
        hue = MUTED if height == 0 else colour(height - 1)
        axes.barh(height, 100 * score.value, height=0.6, color=hue)
        end = score.value
        if not np.isnan(score.low):
            axes.plot([100 * score.low, 100 * score.high], [height, height], color=INK, linewidth=2)
            end = max(score.high, end)
        axes.annotate(
            f"{100 * score.value:.1f}",
            (100 * end, height),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=12,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # the line of guessing may lie behind
        )


@styled()
def score_curves(scores: Sequence[Score], chance: float) -> Figure:
    """A line for each of the weights over the number of images per class, with its interval as a band.

    Args:
        scores: their measures end in that number ("mAP, k = 8").
        chance: level of guessing, 0..1; drawn dashed.
    """
    figure = blank(9.6, 5.4)
    axes = figure.subplots()
    numbers = sorted({_number(score) for score in scores})
    for place, name in enumerate(dict.fromkeys(score.weights for score in scores)):
        own = sorted((score for score in scores if score.weights == name), key=_number)
        hue = MUTED if place == 0 else colour(place - 1)
        x, low, high = [_number(score) for score in own], *zip(*((100 * s.low, 100 * s.high) for s in own), strict=True)
        axes.fill_between(x, low, high, color=hue, alpha=0.15, linewidth=0)
        axes.plot(x, [100 * score.value for score in own], color=hue, marker="o", markersize=6, label=name)
    axes.axhline(100 * chance, color=MUTED, linestyle="--", linewidth=1.5, label="guessing")
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("images per class to learn from")
    axes.set_ylabel("mAP (%)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    name_lines(axes)
    axes.set_title("band: 95 % interval over the draws of these images", fontsize=12, color=MUTED)
    return figure


def _number(score: Score) -> int:
    return int(score.measure.rpartition(" ")[2])


@styled()
def match_panels(pair: Pair, matches: Mapping[str, npt.NDArray[np.int64]], columns: int) -> Figure:
    """An image, and for each of the weights its changed copy with arrows from where cells are to where they were found.

    In lines from the image to its mirrored copy, all of one row would lie upon each other.

    Args:
        pair: the image and its copy.
        matches: name of the weights -> cell of the copy for each cell of the image (h * w), row by row.
        columns: w, cells per row.
    """
    image, changed = ((view * 255).round().byte().permute(1, 2, 0).numpy() for view in (pair.image, pair.changed))
    truth = mirrored_cells(len(next(iter(matches.values()))) // columns, columns).numpy()
    across = min(3, len(matches) + 1)
    down = -(-(len(matches) + 1) // across)
    figure = blank(4.4 * across, 0.5 + 4.7 * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    show_image(panels[0], image)
    panels[0].set_title("the image", fontsize=13)
    shown = np.unique(np.linspace(0, len(truth) - 1, min(ARROWS, len(truth))).round().astype(int)).tolist()
    for axes, (name, found) in zip(panels[1:], matches.items(), strict=False):
        show_image(axes, changed)
        axes.set_title(f"{name}: {100 * np.mean(found == truth):.0f} % found", fontsize=13)
        for cell in shown:
            place, match = (_centre(int(each), columns, len(truth), image) for each in (truth[cell], found[cell]))
            _mark(axes, place, match)
    figure.supxlabel(
        "blue: a cell that was found; orange: from where it is to where it was found", fontsize=13, color=MUTED
    )
    return figure


def _centre(cell: int, columns: int, cells: int, image: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The middle of what a cell looks at, px, xy."""
    height, width = image.shape[:2]
    x, y = cell_places(columns, width)[cell % columns], cell_places(cells // columns, height)[cell // columns]
    return float(x), float(y)


def _mark(axes: Axes, place: tuple[float, float], match: tuple[float, float]) -> None:
    hue = RIGHT if place == match else WRONG
    if place != match:
        arrow = {"arrowstyle": "-|>", "color": hue, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 4}
        arrow["connectionstyle"] = "arc3,rad=0.15"  # arrows along one row do not lie upon each other
        arrow["path_effects"] = [withStroke(linewidth=3, foreground="white", alpha=0.7)]
        axes.annotate("", match, place, arrowprops=arrow)
    axes.plot(*place, marker="o", markersize=8, color=hue, markeredgecolor="white", zorder=3)
