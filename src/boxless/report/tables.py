"""Tables of scores side by side: mean, spread over seeds, and gain over a reference."""

import json
import math
from collections.abc import Sequence

from boxless.report.comparison import Comparison, with_spread
from boxless.report.page import Table
from boxless.report.run_report import RunReport
from boxless.tasks.compare_table import NOTE, REFERENCE, SCRATCH, Cell, Row, summarize

SEEDS = ("seed", "label_seed")
"""Keys in which runs of one group may differ."""
LEVELS = {"reference": "plain", "better": "good", "worse": "bad", "within noise": "note"}


def tables_of_comparison(comparison: Comparison) -> list[Table]:
    """The scores of a finished comparison, a table for each detector."""
    if not comparison.finished:
        return []
    rows = summarize(comparison.cells)
    several = len({row.detector for row in rows}) > 1
    detectors = list(dict.fromkeys(row.detector for row in rows))
    return [
        _table(
            [row for row in rows if row.detector == detector],
            detector if several else "",
            {REFERENCE: SCRATCH},
            NOTE if detector == detectors[-1] else "",
        )
        for detector in detectors
    ]


def _table(rows: Sequence[Row], title: str, names: dict[str, str], note: str) -> Table:
    scores = [name for name in ("AP", "AP50", "AP75") if all(name in row.mean for row in rows)]
    entries = [
        (
            names.get(row.method, row.method),
            f"{row.images:,}" + (f" ({row.amount})" if row.amount.shots else ""),
            *(with_spread(row.mean[name], row.spread[name]) for name in scores),
            "" if row.gain is None else with_spread(row.gain, row.interval, "+"),
            str(row.n),
            row.verdict,
        )
        for row in rows
    ]
    ranges = [None if row.gain is None or math.isnan(row.interval) else (row.gain, row.interval) for row in rows]
    head = ("start", "labelled images", *scores, "gain in AP, 95 %", "seeds", "")
    levels = tuple(LEVELS.get(row.verdict.partition(" than ")[0], "warn") for row in rows)
    return Table(title, head, tuple(entries), tuple(ranges), levels, note)


def table_of_runs(reports: Sequence[RunReport]) -> list[Table]:
    """Fine-tuned runs in groups that differ in seeds alone; gains are over the first group, on the same labels."""
    measured = [report for report in reports if report.finished and report.scores.get("AP") is not None]
    if len(measured) < 2:
        return []
    groups: dict[str, dict[tuple[int, ...], RunReport]] = {}
    repeats = []
    for report in measured:
        if groups.setdefault(_fingerprint(report), {}).setdefault(_seeds(report), report) is not report:
            repeats.append(report.name)
    names = {}
    for key, group in groups.items():
        own = [report.name for report in group.values()]
        names[key] = own[0] if len(own) == 1 else f"{own[0]} … {own[-1]}"
    first = next(iter(groups))
    seeds = sorted({_seeds(report) for report in measured})
    cells = [
        Cell(
            str(report.inputs.get("val")),  # gains are within what was measured on the same labels
            REFERENCE if key == first else key,
            float(report.summary.get("labelled_images", 0)),
            int(report.summary.get("labelled_images", 0)),
            seeds.index(pair),
            {name: math.nan if value is None else value for name, value in report.scores.items()},
            float(report.summary.get("seconds", 0)),
        )
        for key, group in groups.items()
        for pair, report in group.items()
    ]
    data = {cell.detector for cell in cells}
    note = f"± is the standard deviation over seeds; gains are over {names[first]}, paired by seed, 95 % for all."
    if len(data) > 1:
        note += " These runs were measured on different labels: scores of different labels cannot be compared."
    if repeats:
        note += f" A recipe counts once with its seeds, by the first run; left out: {', '.join(repeats)}."
    return [_table(summarize(cells), "", {REFERENCE: names[first], **names}, note)]


def _seeds(report: RunReport) -> tuple[int, ...]:
    """Seeds that pair runs of two groups."""
    return tuple(int(report.settings.get(key) or 0) for key in SEEDS)


def _fingerprint(report: RunReport) -> str:
    recipe = {key: value for key, value in report.settings.items() if key not in SEEDS}
    return json.dumps([recipe, report.environment.get("inputs")], sort_keys=True, default=str)
