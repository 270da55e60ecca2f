"""The page as one HTML text."""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from boxless.report.advice import Advice, command_of, verdict
from boxless.report.curves import Named, charts
from boxless.report.embed import embed_pictures, merge_galleries
from boxless.report.run_report import RunReport
from boxless.training.progress import duration

SCRIPTS = ("page.js", "charts.js", "gallery.js")
MANY_CLASSES = 40
"""From here on a table of classes is folded away."""


@dataclass(frozen=True)
class Table:
    """Scores side by side.

    Attributes:
        title: title of the comparison.
        head: headings of the columns.
        rows: their entries, as text.
        ranges: for each row the gain and its half width, in percent points; None if there is none.
        levels: for each row how its last entry is meant.
        note: explanation of the numbers.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ranges: tuple[tuple[float, float] | None, ...]
    levels: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Page:
    """Contents of a page.

    Attributes:
        title: title of the page.
        subtitle: subject of the page, in a line.
        reports: runs that have a part of their own; a run's number is its place among them.
        curves: groups of what is drawn, each with a title, numbers, names and metrics.
        galleries: runs whose detections are shown.
        folders: name and folder of what has pictures.
        tables: comparisons.
        advice: recommended next steps.
        gaps: missing parts.
        live: true if the page asks its server for updates.
    """

    title: str
    subtitle: str
    reports: Sequence[RunReport]
    curves: Sequence[tuple[str, Named]]
    galleries: Sequence[RunReport]
    folders: Sequence[tuple[str, Path]]
    tables: Sequence[Table] = ()
    advice: Sequence[Advice] = ()
    gaps: Sequence[str] = ()
    live: str = field(default="", kw_only=True)


def render(page: Page) -> str:
    """The page as HTML."""
    pictures, unreadable = embed_pictures(page.folders)
    scripts = [_resource(name) for name in SCRIPTS]
    environment = Environment(
        loader=PackageLoader("boxless", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        style=Markup(_resource("page.css")),
        scripts=[Markup(text) for text in scripts],
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in scripts),
        runs=[_run(report) for report in page.reports],
        differences=_differences(page.reports),
        pictures=pictures,
        gaps=[*page.gaps, *unreadable],
        charts=charts(page.curves),
        gallery=merge_galleries(page.galleries),
        spread=max((abs(gain) + half for table in page.tables for gain, half in filter(None, table.ranges)), default=1)
        or 1,  # all gains are 0
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=version("boxless"),
    )


def _run(report: RunReport) -> dict[str, Any]:
    return {
        "report": report,
        "verdict": verdict(report),
        "numbers": _numbers(report),
        "facts": _facts(report),
        "classes": _classes(report),
        "folded": len(report.per_class) > MANY_CLASSES,
    }


def _numbers(report: RunReport) -> list[tuple[str, str]]:
    """The few that matter, label and value."""
    summary, (done, total) = report.summary, report.steps
    numbers = [
        (f"{name}, percent", "not measured" if value is None else f"{100 * value:.1f}")
        for name, value in list(report.scores.items())[:3]
    ]
    for folder, evaluation in report.evaluations.items():
        name, value = next(iter(next(iter(evaluation.get("scores", {}).values()), {}).items()), ("AP", None))
        where = folder.removeprefix("evaluation-")
        numbers.append((f"{name} on {where}, percent", "not measured" if value is None else f"{100 * value:.1f}"))
    if "labelled_images" in summary:
        numbers.append(("labelled images", f"{summary['labelled_images']:,}"))
    if summary.get("classes_without_labels"):
        missing = summary["classes_without_labels"]
        names = ", ".join(missing) if len(missing) <= 3 else str(len(missing))  # all are under AP by class
        numbers.append(("classes without labels, AP counts them as 0", names))
    numbers.append(("steps", f"{done:,}" if total in (None, done) else f"{done:,} of {total:,}"))
    if "images_seen" in summary:
        numbers.append(("images seen", f"{summary['images_seen']:,}"))
    if "seconds" in summary:
        numbers.append(("time" if report.pretrains else "time, evaluation included", duration(summary["seconds"])))
    speed = summary.get("images_per_second") or report.progress.get("images_per_second")
    if speed:
        numbers.append(("images per second", f"{speed:.1f}"))
    if not report.finished and report.progress.get("seconds_left"):
        numbers.append(("left, at this speed", duration(report.progress["seconds_left"])))
    return numbers


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """The run and its data."""
    environment = report.environment
    inputs = environment.get("inputs", {})
    facts = [("recipe", str(report.settings.get("recipe", "not named"))), ("folder", str(report.path.resolve()))]
    facts += [(str(name), str(value)) for name, value in inputs.items() if value is not None]
    facts += [("weights", str(report.summary[key])) for key in ("init", "weights") if key in report.summary]
    if report.summary.get("trains"):
        facts.append(("trained parts", ", ".join(report.summary["trains"])))
    if "sha256" in report.labels:
        facts.append(("labelled images, SHA-256 of their ids", str(report.labels["sha256"])))
    facts += [(name, str(environment[name])) for name in ("machine", "started") if name in environment]
    versions = [
        f"{name} {environment[name]}" for name in ("boxless", "torch", "torchvision", "python") if name in environment
    ]
    facts += [("versions", ", ".join(versions))] if versions else []
    facts += [("command", command_of(report))] if command_of(report) else []
    return facts


def _classes(report: RunReport) -> list[tuple[str, float | None]]:
    """Classes with their scores in percent, the best first, those without a score last."""
    ranked = sorted(report.per_class.items(), key=lambda item: -1.0 if item[1] is None else item[1], reverse=True)
    return [(name, None if value is None else 100 * value) for name, value in ranked]


def _differences(reports: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """Keys of the recipes that are not the same everywhere, with each run's value."""
    if len(reports) < 2:
        return []
    keys = dict.fromkeys(key for report in reports for key in report.settings)
    rows = [(key, [_shown(report.settings.get(key, _ABSENT)) for report in reports]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


_ABSENT = object()


def _shown(value: object) -> str:
    return "–" if value is _ABSENT else json.dumps(value) if not isinstance(value, str) else value


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
