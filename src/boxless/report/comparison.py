"""A folder of boxless compare: its runs, their mean curves, and what its scores say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from boxless.report.advice import Advice, verdict
from boxless.report.run_report import RunReport, read_run
from boxless.runs.reading import Metrics
from boxless.tasks.compare_table import (
    REFERENCE,
    SCRATCH,
    Amount,
    Cell,
    Row,
    finetuning_recipes,
    read_table,
    summarize,
)


@dataclass(frozen=True)
class Comparison:
    """A folder of boxless compare: its cells, and the runs in it."""

    path: Path
    name: str
    cells: tuple[Cell, ...]
    pretrained: tuple[RunReport, ...]
    finetuned: tuple[RunReport, ...]

    @property
    def finished(self) -> bool:
        """True if its table is written."""
        return bool(self.cells)


def read_comparison(path: Path, name: str) -> Comparison:
    """Read a folder of boxless compare, perhaps of one that is not finished."""
    pretrained = [read_run(file.parent, file.parent.name) for file in sorted(path.glob("pretrain/*/recipe.yaml"))]
    finetuned = [
        read_run(file.parent, "/".join(file.parent.relative_to(path / "finetune").parts))
        for file in finetuning_recipes(path)
    ]
    table = path / "comparison.csv"
    cells = tuple(read_table(table)) if table.is_file() else ()
    return Comparison(path, name, cells, tuple(pretrained), tuple(finetuned))


def with_spread(value: float, spread: float, sign: str = "") -> str:
    """A share and its spread in percent: 31.0 ± 1.4."""
    if math.isnan(value):
        return "not measured"
    return f"{100 * value:{sign}.1f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}")


def first_seeds(comparison: Comparison) -> list[RunReport]:
    """Fine-tunings with the first seed, one for each start and share: enough to look at."""
    return [replace(report, name=_cell_name(report)) for report in comparison.finetuned if report.path.name == "seed-0"]


def mean_curves(comparison: Comparison, first: int) -> list[tuple[int, str, Metrics]]:
    """The curves of fine-tunings that differ in their seed alone, as their means, numbered from `first`."""
    groups: dict[Path, list[RunReport]] = {}
    for report in comparison.finetuned:
        groups.setdefault(report.path.parent, []).append(report)
    return [
        (number, _cell_name(group[0]), _mean([report.metrics for report in group]))
        for number, group in enumerate(groups.values(), first)
    ]


def _cell_name(report: RunReport) -> str:
    """DETECTOR/START/labels-0.1/seed-0 in words; older folders have no detector."""
    *detector, start, share, _ = ["", "", "", *report.name.split("/")][-4:]
    name = SCRATCH if start == REFERENCE else start
    return ", ".join([name, *filter(None, detector), str(Amount.of_folder(share))])


def _mean(several: Sequence[Metrics]) -> Metrics:
    means: Metrics = {}
    for name in several[0]:
        values: dict[int, list[float]] = {}
        for metrics in several:
            for step, value in zip(*metrics.get(name, ([], [])), strict=True):
                values.setdefault(step, []).append(value)
        steps = sorted(step for step, known in values.items() if len(known) == len(several))
        means[name] = steps, [sum(values[step]) / len(several) for step in steps]
    return means


def comparison_gaps(comparison: Comparison) -> list[str]:
    """Sentences on what is missing or could not be read."""
    gaps = [f"{report.name}: {gap}" for report in comparison.finetuned for gap in report.gaps]
    if not comparison.finished:
        gaps.append(f"{comparison.name} has no comparison.csv yet: the table comes when all fine-tunings are done.")
    return gaps


def advise_comparison(comparison: Comparison) -> list[Advice]:
    """Verdicts of a comparison on each start, and next steps."""
    result = []
    rows = summarize(comparison.cells)
    several = len({row.detector for row in rows}) > 1
    for row in rows:
        if row.gain is None:
            continue
        labels = f"{row.images} labels" if not row.amount.shots else str(row.amount)
        name = f"{row.method}, {labels}" + (f", {row.detector}" if several else "")
        gain = with_spread(row.gain, row.interval, "+")
        lost = _lost_classes(comparison, row)
        what = "pretraining" if row.over == REFERENCE else "self-training"
        if row.verdict.startswith("better"):
            result.append(Advice("good", f"{name}: {what} helps", f"AP {gain}.{lost}"))
        elif row.verdict.startswith("worse"):
            see = "" if row.over != REFERENCE else " See whether its pretraining is healthy and long enough."
            result.append(Advice("bad", f"{name}: {what} hurts", f"AP {gain}.{see}{lost}"))
        elif math.isnan(row.interval):
            reason = f"AP {gain}, from one seed: chance may do as much. Give more seeds; finished cells are kept."
            result.append(Advice("warn", f"{name}: cannot tell", reason, "--seeds 3"))
        elif row.verdict.startswith("both seeds"):
            reason = f"AP {gain}: both seeds {row.agreed}, and two are too few to tell. Finished cells are kept.{lost}"
            result.append(Advice("warn", f"{name}: both seeds {row.agreed}", reason, "--seeds 5"))
        else:
            needed = math.ceil(row.n * (row.interval / max(abs(row.gain), 1e-9)) ** 2)
            more = f"A gain of this size would show with about {needed} seeds. " if 0 < needed <= 50 else ""
            reason = f"AP {gain}. {more}A longer pretraining may do more than seeds.{lost}"
            result.append(Advice("note", f"{name}: within noise", reason))
    for report in comparison.pretrained:
        state = verdict(report)
        if state.level in ("bad", "warn"):
            result.insert(0, Advice(state.level, f"The pretraining {report.name} is {state.title}", state.reason))
    return result


def _lost_classes(comparison: Comparison, row: Row) -> str:
    """ " 3 of 10 classes lost AP: ..." where some did, means over seeds."""
    own, other = (_per_class(comparison, replace(row, method=name)) for name in (row.method, row.over))
    both = [name for name in own if name in other]
    lost = sorted((name for name in both if own[name] < other[name]), key=lambda name: own[name] - other[name])
    if not lost:
        return ""
    listed = ", ".join(f"{name} {100 * (own[name] - other[name]):+.1f}" for name in lost[:5])
    return f" {len(lost)} of {len(both)} classes lost AP: {listed}{', ...' if len(lost) > 5 else ''}."


def _per_class(comparison: Comparison, row: Row) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for report in comparison.finetuned:
        *detector, method, labels, _ = report.name.split("/")
        if (method, labels) == (row.method, row.amount.folder) and (not detector or detector[-1] == row.detector):
            for name, value in report.per_class.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
    return {name: sum(known) / len(known) for name, known in values.items()}
