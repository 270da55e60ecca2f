"""What a run's folder says of it, as far as it is there: a run may be unfinished, and files missing or broken."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxless.errors import UserError
from boxless.report.shapes import misfits
from boxless.untrusted import parse_json, parse_yaml

Metrics = dict[str, tuple[list[int], list[float]]]
"""Name -> (steps, values)."""

EXPECTED = {
    "environment.json": "machine, versions and data are not known",
    "metrics.csv": "there are no curves",
}
"""Files that every run has, and what is missing without them."""


@dataclass(frozen=True)
class Story:
    """A run's folder as it was read.

    Attributes:
        path: the folder.
        name: what the page calls the run.
        recipe: every key by its dotted name.
        recipe_text: recipe.yaml.
        environment: versions, machine, inputs, command; {} where unknown.
        summary: what came out; {} of an unfinished run.
        progress: the newest report of a run that trains or was stopped; {} where there is none.
        metrics: of metrics.csv.
        labels: classes and choice of labels of a fine-tuning.
        galleries: images with detections that evaluations left.
        evaluations: what boxless evaluate measured, by the data's name.
        gaps: what could not be read, and what is missing for it, in sentences.
    """

    path: Path
    name: str
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    galleries: tuple[dict[str, Any], ...] = ()
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()

    @property
    def pretrains(self) -> bool:
        """Whether it is a pretraining; else it is a fine-tuning."""
        return "method.name" in self.recipe

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.summary)

    @property
    def what(self) -> str:
        """What was run, in a few words."""
        backbone = self.recipe.get("trunk.backbone", "a backbone")
        if self.pretrains:
            return f"Pretraining of {backbone} by {self.recipe['method.name']}"
        return f"Fine-tuning of {self.recipe.get('detector.kind', 'a detector')} on {backbone}"

    @property
    def scores(self) -> dict[str, float | None]:
        """Of a finished fine-tuning: those of its first kind, 0..1; None where nothing can be measured."""
        return dict(next(iter(self.summary.get("scores", {}).values()), {}))

    @property
    def main_score(self) -> str:
        """The name of the score that counts: AP, or FCN's mIoU."""
        return next(iter(self.scores), "AP")

    @property
    def per_class(self) -> dict[str, float | None]:
        """Class -> score, as `scores`."""
        return dict(next(iter(self.summary.get("per_class", {}).values()), {}))

    @property
    def steps(self) -> tuple[int, int | None]:
        """Steps done, and of how many, where that is known."""
        logged = max((steps[-1] + 1 for steps, _ in self.metrics.values() if steps), default=0)
        total = self.summary.get("steps") or self.progress.get("total")
        return int(self.summary.get("steps") or max(logged, self.progress.get("step", 0))), total


def read_story(path: Path, name: str, evaluation: Path | None = None) -> Story:
    """Read what there is; of evaluations the given folder's alone, or else all that lie in the run's.

    Raises:
        UserError: where the folder is none of a run.
    """
    recipe_file = path / "recipe.yaml"
    if not recipe_file.is_file():
        kind = "is not a run (no recipe.yaml in it)" if path.is_dir() else "no such folder"
        raise UserError(f"run {path}: {kind}; name a folder of boxless pretrain, finetune, compare or demo")
    try:
        text = recipe_file.read_text()
        recipe = flat(parse_yaml(text))
    except (OSError, ValueError) as error:
        raise UserError(f"{recipe_file}: cannot be read ({_short(error)}); copy it from the original run") from error
    folders = [path, *sorted(path.glob("evaluation-*"))] if evaluation is None else [evaluation]
    gaps = [f"{file} is missing: {lost}." for file, lost in EXPECTED.items() if not (path / file).is_file()]
    return Story(
        path,
        name,
        recipe,
        text,
        _json(path / "environment.json", gaps),
        _json(path / "summary.json", gaps),
        _json(path / "progress.json", gaps),
        read_metrics(path / "metrics.csv", gaps),
        _json(path / "labels.json", gaps),
        tuple(found for folder in folders if (found := _gallery(folder / "gallery.json", gaps))),
        {folder.name: found for folder in folders if (found := _json(folder / "evaluation.json", gaps))},
        tuple(gaps),
    )


def flat(content: object, prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by their dotted keys."""
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    return {key: value for name, part in content.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def read_metrics(file: Path, gaps: list[str]) -> Metrics:
    """metrics.csv, perhaps of a run that is writing it just now: a line that is cut is left out."""
    metrics: Metrics = {}
    broken = 0
    try:
        lines = file.read_text(errors="replace").splitlines(keepends=True)[1:]
    except OSError:
        return metrics
    for line in lines:
        if not line.endswith("\n"):
            continue
        try:
            (row,) = csv.reader([line])
            step, name, value = int(row[0]), row[1], float(row[2])
            if not 0 <= step < 1e15:
                raise ValueError
        except (ValueError, IndexError, csv.Error):
            broken += 1
            continue
        steps, values = metrics.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    if broken:
        gaps.append(f"metrics.csv has {broken} lines that cannot be read; they are left out.")
    return metrics


def _gallery(file: Path, gaps: list[str]) -> dict[str, Any]:
    content = _json(file, gaps)
    if content and not {"data", "images", "score", "counts", "confusions", "classes", "shown"} <= content.keys():
        gaps.append(f"{file.name} is incomplete; the detections are left out: boxless evaluate writes it again.")
        return {}
    return content


def _json(file: Path, gaps: list[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = parse_json(file.read_text())
    except (OSError, ValueError) as error:
        gaps.append(f"{file.name} cannot be read ({_short(error)}); what it says is left out.")
        return {}
    known = content if isinstance(content, dict) else {}
    for key in (wrong := misfits(known, file.name)):
        gaps.append(f"{file.name}: what it says of {key} is damaged and left out.")
    return {key: value for key, value in known.items() if key not in wrong}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
