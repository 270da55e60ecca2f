"""From folders to the page that tells of them: which kind each is, and the scores of several side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from boxless.errors import UserError
from boxless.files import write_text
from boxless.report.advice import Advice, advise, together, verdict
from boxless.report.page import Page, Table, render
from boxless.report.run_report import RunReport, read_run
from boxless.runs.reading import Metrics
from boxless.tasks.compare_table import (
    NOTE,
    REFERENCE,
    SCRATCH,
    Cell,
    Row,
    finetuning_recipes,
    is_comparison,
    read_table,
    summarize,
)
from boxless.training.progress import duration

SEEDS = ("seed", "label_seed")
"""Keys in which runs of one group may differ."""
NO_WORDS = {"reference": "plain", "better": "good", "worse": "bad", "within noise": "note"}


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


Report = RunReport | Comparison


def read_reports(runs: Sequence[str]) -> list[Report]:
    """Read folders of runs, evaluations, comparisons and demos; one that is named twice is read once.

    Raises:
        UserError: if one is none of these.
    """
    paths = list({Path(run).resolve(): Path(run) for run in runs}.values())
    names = [path.resolve().name for path in paths]
    depth = 1
    while len(set(names)) < len(paths) and depth < 8:
        depth += 1
        names = ["/".join(path.resolve().parts[-depth:]) for path in paths]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Report:
    for folder in (path, path / "comparison"):
        if is_comparison(folder):
            return _read_comparison(folder, name)
    if (path / "evaluation.json").is_file() and not (path / "recipe.yaml").is_file():
        return read_run(_evaluated(path), name, path)
    return read_run(path, name)


def _evaluated(path: Path) -> Path:
    """The run that a folder of boxless evaluate is of."""
    try:
        return Path(json.loads((path / "evaluation.json").read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / 'evaluation.json'}: does not say which run it is of; name the run's folder"
        ) from error


def _read_comparison(path: Path, name: str) -> Comparison:
    pretrained = [read_run(file.parent, file.parent.name) for file in sorted(path.glob("pretrain/*/recipe.yaml"))]
    finetuned = [
        read_run(file.parent, "/".join(file.parent.relative_to(path / "finetune").parts))
        for file in finetuning_recipes(path)
    ]
    table = path / "comparison.csv"
    cells = tuple(read_table(table)) if table.is_file() else ()
    return Comparison(path, name, cells, tuple(pretrained), tuple(finetuned))


def make_page(sources: Sequence[Report], live: str = "") -> str:
    """The page of all that was named, as HTML."""
    single = sources[0]
    if len(sources) == 1 and isinstance(single, RunReport):
        curves = [("", [(0, single.name, single.metrics)])]
        pictures = [(single.name, single.path)]
        said = _about(single)
        return render(Page(single.name, said, [single], curves, [single], pictures, advice=advise(single), live=live))
    reports = [each for each in sources if isinstance(each, RunReport)]
    comparisons = [each for each in sources if isinstance(each, Comparison)]
    inner = [report for each in comparisons for report in each.pretrained]
    cells = [_first_seeds(each) for each in comparisons]
    runs = [*reports, *inner]
    numbered = list(enumerate(runs))
    curves = [
        ("Pretraining", [(number, report.name, report.metrics) for number, report in numbered if report.pretrains]),
        ("Fine-tuning", [(number, report.name, report.metrics) for number, report in numbered if not report.pretrains]),
        *[(f"{each.name}: fine-tuning, means over seeds", _means(each, len(runs))) for each in comparisons],
    ]
    tables = [table for each in comparisons for table in _tables(each)] + _table_of_runs(reports)
    return render(
        Page(
            comparisons[0].name if len(sources) == 1 else f"{len(sources)} runs side by side",
            _subtitle(sources),
            runs,
            curves,
            [*reports, *(report for each in cells for report in each)],
            [(each.name, each.path) for each in [*sources, *inner]],
            tables,
            [*(advice for each in comparisons for advice in advise_comparison(each)), *together(reports)],
            [gap for each in comparisons for gap in _gaps(each)],
            live=live,
        )
    )


def write_report(runs: Sequence[str], out: Path | None = None) -> Path:
    """Write the page of the named folders; by default report.html in the folder, or of several here."""
    if out is None:
        out = Path(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")
    if out.is_dir():
        raise UserError(f"out {out}: is a folder; name a file such as {out / 'report.html'}")
    write_text(out, make_page(read_reports(runs)))
    return out


def _subtitle(sources: Sequence[Report]) -> str:
    single = sources[0]
    if len(sources) > 1 or isinstance(single, RunReport):
        return ", ".join(each.name for each in sources)
    starts = dict.fromkeys(cell.method for cell in single.cells)
    detectors = dict.fromkeys(cell.detector for cell in single.cells)
    if not single.finished:
        done = sum(report.finished for report in single.finetuned)
        return f"A comparison that is not finished: {done} fine-tunings are done."
    named = ", ".join(SCRATCH if start == REFERENCE else start for start in starts)
    spent = duration(sum(cell.seconds for cell in single.cells))
    before = sum(float(report.summary.get("seconds", 0)) for report in single.pretrained)
    cost = f"{spent} of fine-tuning" + (f" after {duration(before)} of pretraining" if before else "")
    return f"{len(single.cells)} fine-tunings of {', '.join(detectors)}, started {named}: {cost}."


def _about(report: RunReport) -> str:
    """Describe the run and its data in a line."""
    inputs = report.inputs
    images = f" on {inputs['images']:,} images" if isinstance(inputs.get("images"), int) else ""
    machine = report.environment.get("machine")
    recipe = report.settings.get("recipe")
    parts = [
        f"{report.title}{images}",
        *([f"recipe {recipe}"] if recipe else []),
        *([f"on {machine}"] if machine else []),
    ]
    return f"{', '.join(parts)}."


def _tables(comparison: Comparison) -> list[Table]:
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
            f"{row.images:,}",
            *(_with_spread(row.mean[name], row.spread[name]) for name in scores),
            "" if row.gain is None else _with_spread(row.gain, row.interval, "+"),
            str(row.n),
            row.verdict,
        )
        for row in rows
    ]
    ranges = [None if row.gain is None or math.isnan(row.interval) else (row.gain, row.interval) for row in rows]
    head = ("start", "labelled images", *scores, "gain in AP, 95 %", "seeds", "")
    levels = tuple(NO_WORDS.get(row.verdict, "warn") for row in rows)
    return Table(title, head, tuple(entries), tuple(ranges), levels, note)


def _with_spread(value: float, spread: float, sign: str = "") -> str:
    if math.isnan(value):
        return "not measured"
    return f"{100 * value:{sign}.1f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}")


def _table_of_runs(reports: Sequence[RunReport]) -> list[Table]:
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
    note = f"± is the standard deviation over seeds; gains are over {names[first]}, paired by seed, 95 % by t."
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


def _first_seeds(comparison: Comparison) -> list[RunReport]:
    """Fine-tunings with the first seed, one for each start and share: enough to look at."""
    return [replace(report, name=_cell_name(report)) for report in comparison.finetuned if report.path.name == "seed-0"]


def _means(comparison: Comparison, first: int) -> list[tuple[int, str, Metrics]]:
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
    return ", ".join([name, *filter(None, detector), f"{float(share.removeprefix('labels-')):.0%} of the labels"])


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


def _gaps(comparison: Comparison) -> list[str]:
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
        name = f"{row.method}, {row.images} labels" + (f", {row.detector}" if several else "")
        gain = _with_spread(row.gain, row.interval, "+")
        lost = _lost_classes(comparison, row)
        if row.verdict == "better":
            result.append(Advice("good", f"{name}: pretraining helps", f"AP {gain}.{lost}"))
        elif row.verdict == "worse":
            reason = f"AP {gain}. See whether its pretraining is healthy and long enough.{lost}"
            result.append(Advice("bad", f"{name}: pretraining hurts", reason))
        elif math.isnan(row.interval):
            reason = f"AP {gain}, from one seed: chance may do as much. Give more seeds; finished cells are kept."
            result.append(Advice("warn", f"{name}: cannot tell", reason, "--seeds 3"))
        else:
            needed = math.ceil(row.n * (row.interval / max(abs(row.gain), 1e-9)) ** 2)
            more = f"A gain of this size would show with about {needed} seeds. " if needed <= 50 else ""
            reason = f"AP {gain}. {more}A longer pretraining may do more than seeds.{lost}"
            result.append(Advice("note", f"{name}: within noise", reason))
    for report in comparison.pretrained:
        state = verdict(report)
        if state.level in ("bad", "warn"):
            result.insert(0, Advice(state.level, f"The pretraining {report.name} is {state.title}", state.reason))
    return result


def _lost_classes(comparison: Comparison, row: Row) -> str:
    """ " 3 of 10 classes lost AP: ..." where some did, means over seeds."""
    own, other = (_per_class(comparison, replace(row, method=name)) for name in (row.method, REFERENCE))
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
        if (method, labels) == (row.method, f"labels-{row.fraction:g}") and (
            not detector or detector[-1] == row.detector
        ):
            for name, value in report.per_class.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
    return {name: sum(known) / len(known) for name, known in values.items()}
