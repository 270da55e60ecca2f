"""A run as the page shows it, as far as it is there: it may be unfinished, and files missing or damaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxless.runs.reading import Metrics, read_json, read_metrics
from boxless.runs.run import Run

EXPECTED = {
    "environment.json": "machine, versions and data are not known",
    "metrics.csv": "there are no curves",
}
"""Files that every run has, and what is missing without them."""
GALLERY = {"data", "images", "score", "counts", "confusions", "classes", "shown"}
"""Keys of a whole gallery.json."""


@dataclass(frozen=True)
class RunReport:
    """The contents of a run's folder.

    Attributes:
        path: the folder.
        name: name of the run on the page.
        settings: every key of the recipe by its dotted name.
        recipe_text: recipe.yaml.
        environment: versions, machine, inputs, command; {} if unknown.
        summary: scores, health and times; {} of an unfinished run.
        progress: the newest report of a run that trains or was stopped; {} if there is none.
        metrics: contents of metrics.csv.
        labels: classes and choice of labels of a fine-tuning.
        galleries: images with detections that evaluations left.
        evaluations: results of boxless evaluate, by the data's name.
        gaps: sentences on what could not be read.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    summary: dict[str, Any]
    progress: dict[str, Any]
    metrics: Metrics
    labels: dict[str, Any]
    galleries: tuple[dict[str, Any], ...]
    evaluations: dict[str, dict[str, Any]]
    gaps: tuple[str, ...]

    @property
    def pretrains(self) -> bool:
        """True if it is a pretraining; else it is a fine-tuning."""
        return "method.name" in self.settings

    @property
    def finished(self) -> bool:
        """True if it came to its end."""
        return bool(self.summary)

    @property
    def inputs(self) -> dict[str, Any]:
        """Data and weights that the run uses; {} if unknown."""
        return dict(self.environment.get("inputs", {}))

    @property
    def title(self) -> str:
        """The kind of training in a few words."""
        backbone = self.settings.get("trunk.backbone", "a backbone")
        if self.pretrains:
            return f"Pretraining of {backbone} by {self.settings['method.name']}"
        return f"Fine-tuning of {self.settings.get('detector.kind', 'a detector')} on {backbone}"

    @property
    def scores(self) -> dict[str, float | None]:
        """Scores of a finished fine-tuning, those of its first kind, 0..1; None if nothing can be measured."""
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
        """Steps done, and of how many, if that is known."""
        logged = max((steps[-1] + 1 for steps, _ in self.metrics.values() if steps), default=0)
        total = self.summary.get("steps") or self.progress.get("total")
        return int(self.summary.get("steps") or max(logged, self.progress.get("step", 0))), total


def read_run(path: Path, name: str, evaluation: Path | None = None) -> RunReport:
    """Read a run's folder; of evaluations the given folder's alone, or else all that lie in the run's.

    Raises:
        UserError: if the folder is not a run, or its recipe cannot be read.
    """
    run = Run.open(path)
    folders = [path, *sorted(path.glob("evaluation-*"))] if evaluation is None else [evaluation]
    gaps = [f"{file} is missing: {lost}." for file, lost in EXPECTED.items() if not (path / file).is_file()]
    return RunReport(
        path,
        name,
        run.settings,
        run.recipe_file.read_text(),
        run.read("environment.json", gaps),
        run.read("summary.json", gaps),
        run.read("progress.json", gaps),
        read_metrics(path / "metrics.csv", gaps),
        run.read("labels.json", gaps),
        tuple(found for folder in folders if (found := _gallery(folder / "gallery.json", gaps))),
        {folder.name: found for folder in folders if (found := read_json(folder / "evaluation.json", gaps))},
        tuple(gaps),
    )


def _gallery(file: Path, gaps: list[str]) -> dict[str, Any]:
    content = read_json(file, gaps)
    if content and not content.keys() >= GALLERY:
        gaps.append(f"{file.name} is incomplete; the detections are left out: boxless evaluate writes it again.")
        return {}
    return content
