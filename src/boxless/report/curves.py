"""Numbers over steps as the page's charts take them."""

import math
from collections.abc import Sequence
from typing import Any

from boxless.runs.reading import Metrics

KNOWN = {
    "loss": ("loss", "what training minimises"),
    "val/AP": ("AP on validation", "average precision at looks along the way, in percent"),
    "val/AP50": ("AP50 on validation", "average precision at IoU 0.5, in percent"),
    "val/mIoU": ("mIoU on validation", "mean overlap of the classes' pixels, in percent"),
    "health/spread": ("spread", "of the embeddings: 1 is even, 0 is collapsed"),
    "health/rank": ("effective rank", "directions that the embeddings use; near 1 is collapsed"),
    "health/alignment": ("alignment", "distance of views of the same image: 0 means they agree"),
    "health/uniformity": ("uniformity", "how evenly all embeddings lie: lower is more even"),
    "learning_rate": ("learning rate", "of the optimiser, before factors of groups"),
    "momentum": ("momentum of the target", "how slowly the target follows"),
}
"""Title and a word of help; terms of the loss keep their own names."""
PERCENT = ("val/",)
POINTS = 60_000
"""Largest number of points of all curves of a page together: about a megabyte."""


Named = Sequence[tuple[int, str, Metrics]]
"""Runs with their curves; a run has one number, and so one colour, wherever a page shows it."""


def charts(groups: Sequence[tuple[str, Named]]) -> list[dict[str, Any]]:
    """Titled groups of charts, each group with a range of steps of its own; those without any curve are left out."""
    curves = max(1, sum(len(own) for _, metrics in groups for *_, own in metrics))
    made = [{"title": title, "charts": _group(metrics, max(100, POINTS // curves))} for title, metrics in groups]
    return [group for group in made if group["charts"]]


def _group(metrics: Named, limit: int) -> list[dict[str, Any]]:
    """A chart for each metric, with a series for each run that has it; the loss first, then what says most.

    Of several runs what only one has is left out: methods differ in the terms of their losses.
    """
    names = list(dict.fromkeys(name for *_, own in metrics for name in own))
    logged = sum(bool(own) for *_, own in metrics)
    names = [name for name in names if sum(name in own for *_, own in metrics) > 1 or logged == 1]
    if sum("val/AP" in own for *_, own in metrics):  # of eight scores two are enough to follow
        names = [name for name in names if not name.startswith("val/") or name in KNOWN]
    order = {name: place for place, name in enumerate(("loss", *(name for name in KNOWN if name != "loss")))}
    terms = len(order)
    names.sort(key=lambda name: order.get(name, terms) if name not in ("learning_rate", "momentum") else terms + 1)
    return [_chart(name, metrics, limit) for name in names]


def thinned(steps: Sequence[int], values: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """At most `limit` points: means of neighbours, so that a zoomed-out curve is not a matter of which were kept."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    size = max(1, math.ceil(len(known) / limit))
    groups = [known[first : first + size] for first in range(0, len(known), size)]
    return (
        [round(sum(step for step, _ in group) / len(group), 1) for group in groups],
        [float(f"{sum(value for _, value in group) / len(group):.5g}") for group in groups],
    )


def _chart(name: str, metrics: Named, limit: int) -> dict[str, Any]:
    title, note = KNOWN.get(name, (name.replace("_", " ").replace("/", ": "), ""))
    factor = 100 if name.startswith(PERCENT) else 1
    series = []
    for number, run, own in metrics:
        if name not in own:
            continue
        steps, values = own[name]
        xs, ys = thinned(steps, [factor * value for value in values], limit)
        series.append({"run": number, "name": run, "x": xs, "y": ys, "lost": len(values) - _finite(values)})
    return {"title": title, "note": note, "series": series}


def _finite(values: Sequence[float]) -> int:
    return sum(map(math.isfinite, values))
