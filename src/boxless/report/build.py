"""Build the page from folders of runs, evaluations and comparisons."""

from collections.abc import Sequence
from pathlib import Path

from boxless.errors import UserError
from boxless.files import write_text
from boxless.report.advice import advise, together
from boxless.report.comparison import (
    Comparison,
    advise_comparison,
    comparison_gaps,
    first_seeds,
    mean_curves,
    read_comparison,
)
from boxless.report.page import Page, render
from boxless.report.run_report import RunReport, read_run
from boxless.report.tables import table_of_runs, tables_of_comparison
from boxless.runs.reading import read_json
from boxless.tasks.compare_table import REFERENCE, SCRATCH, is_comparison
from boxless.training.progress import duration

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
            return read_comparison(folder, name)
    if (path / "evaluation.json").is_file() and not (path / "recipe.yaml").is_file():
        return read_run(_evaluated(path), name, path)
    return read_run(path, name)


def _evaluated(path: Path) -> Path:
    """The run that a folder of boxless evaluate is of."""
    run = read_json(path / "evaluation.json", []).get("run")
    if not isinstance(run, str):
        raise UserError(f"{path / 'evaluation.json'}: does not say which run it is of; name the run's folder")
    return Path(run)


def make_page(sources: Sequence[Report], live: str = "") -> str:
    """The page of all that was named, as HTML."""
    single = sources[0]
    if len(sources) == 1 and isinstance(single, RunReport):
        curves = [("", [(0, single.name, single.metrics)])]
        pictures = [(single.name, single.path)]
        subtitle = _about(single)
        return render(
            Page(single.name, subtitle, [single], curves, [single], pictures, advice=advise(single), live=live)
        )
    reports = [each for each in sources if isinstance(each, RunReport)]
    comparisons = [each for each in sources if isinstance(each, Comparison)]
    inner = [report for each in comparisons for report in each.pretrained]
    cells = [first_seeds(each) for each in comparisons]
    runs = [*reports, *inner]
    numbered = list(enumerate(runs))
    curves = [
        ("Pretraining", [(number, report.name, report.metrics) for number, report in numbered if report.pretrains]),
        ("Fine-tuning", [(number, report.name, report.metrics) for number, report in numbered if not report.pretrains]),
        *[(f"{each.name}: fine-tuning, means over seeds", mean_curves(each, len(runs))) for each in comparisons],
    ]
    tables = [table for each in comparisons for table in tables_of_comparison(each)] + table_of_runs(reports)
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
            [gap for each in comparisons for gap in comparison_gaps(each)],
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
