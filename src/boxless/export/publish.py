"""A run as others can use it: its weights, what they need to know, and nothing that names the user's files."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from boxless.errors import UserError
from boxless.export.model_card import model_card
from boxless.files import make_folder, write_text
from boxless.plots.curves import training_curves
from boxless.plots.style import save
from boxless.runs.run import Run, write_json
from boxless.untrusted import parse_yaml

PATHS = ("file", "label_list")
"""Keys of recipes whose values are files of the user's."""


def prepare(where: str, folder: Path) -> Path:
    """Write a run into a folder that can be published, and that every command takes for a run.

    It has the weights, the recipe without paths, a detector's classes, the figures, and README.md, the model card.
    Names of images stay behind.

    Args:
        where: the run's folder.
        folder: new or empty.

    Raises:
        UserError: if the run is not finished, or the folder holds something else.
    """
    run = Run.open(where, trained=True)
    if not run.finished:
        raise UserError(f"run {where}: did not finish (no summary.json); repeat its command to continue it")
    readme = folder / "README.md"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_ours(readme))):
        raise UserError(f"to: {folder}; holds other files, name an empty or a new folder")
    make_folder(folder)
    shutil.copyfile(run.weights, folder / run.weights.name)
    write_text(
        folder / "recipe.yaml",
        yaml.safe_dump(_without_paths(parse_yaml(run.recipe_file.read_text(encoding="utf-8"))), sort_keys=False),
    )
    if run.labels:
        kept = {key: run.labels[key] for key in ("classes", "skeleton", "sha256") if key in run.labels}
        write_json(folder / "labels.json", kept)
    write_text(readme, model_card(run, _draw_curves(run, folder)))
    return folder


def _is_ours(readme: Path) -> bool:
    return readme.is_file() and "library_name: boxless" in readme.read_text()


def _without_paths(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: None if key in PATHS else _without_paths(value) for key, value in content.items()}


def _draw_curves(run: Run, folder: Path) -> list[str]:
    """The training's curves; pictures of images, which may not be for others, stay behind."""
    losses = {name: curve for name, curve in run.metrics.items() if name.startswith("loss")}
    if not losses:
        return []
    save(training_curves(losses), folder / "figures" / "training")
    return ["figures/training.png"]
