"""A run's numbers over its steps, as small multiples."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from boxless.errors import UserError
from boxless.plots.style import INK, PALETTE, blank, styled

COLUMNS = 3
SMOOTH_FROM = 60  # points; shorter curves are shown as they are


@styled()
def training_curves(metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """One panel per metric, in the given order: `metrics[name] = (steps, values)` of the same length.

    A noisy curve is drawn pale with its running mean on top. Values that are not finite are marked by a red
    line at their step.

    Raises:
        UserError: no metrics.
    """
    if not metrics:
        raise UserError("training curves: expected at least one metric, found none; has the run logged a step yet?")
    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = blank(1.2 + 4.2 * columns, 0.4 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, (steps, values)) in zip(grid, metrics.items(), strict=False):
        _draw(axes, name, np.asarray(steps, float), np.asarray(values, float))
    for axes in grid[len(metrics) - columns : len(metrics)]:
        axes.set_xlabel("step")
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, name: str, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> None:
    finite = np.isfinite(values)
    if _is_noisy(values[finite]):
        axes.plot(steps[finite], values[finite], color=PALETTE[0], linewidth=1, alpha=0.3)
        axes.plot(steps[finite], _running_mean(values[finite]), color=PALETTE[0])
    else:
        axes.plot(steps[finite], values[finite], color=PALETTE[0], marker="o" if finite.sum() < 12 else None)
    for step in steps[~finite]:
        axes.axvline(step, color="#B00020", linewidth=1.5)
    axes.set_title(name, color=INK)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _is_noisy(values: npt.NDArray[np.float64]) -> bool:
    """Return whether a curve jumps from point to point, as a loss does and a schedule does not."""
    return len(values) >= SMOOTH_FROM and float(np.std(np.diff(values, 2))) > 0.02 * float(np.ptp(values))


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a centred window of a twentieth of the curve, cut off at both ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))
