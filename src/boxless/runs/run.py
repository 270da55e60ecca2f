"""A run's folder: one documented layout, written atomically, locked while it is being written.

```
recipe.yaml          what was asked, every key; can be given back as --recipe
environment.json     versions, machine, command
metrics.csv          step, name, value (and TensorBoard's events.* beside it)
checkpoints/         the newest two states, checksums in their names
weights.safetensors  what was trained, in torchvision's names
progress.json        the newest report of progress
summary.json         what came out
gallery.json         of a fine-tuning, images with labels and detections for a page
figures/             pictures, with captions.json
report.html          the page that boxless report writes
```
"""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Self

from boxless.errors import UserError
from boxless.files import PARTIAL, make_folder, write_text
from boxless.files import lock as lock_file
from boxless.launch import Processes
from boxless.recipes.load import describe, load
from boxless.recipes.schema import TrainingRecipe
from boxless.runs.reading import Metrics, flat, read_json, read_metrics
from boxless.training.checkpoint import checkpoints
from boxless.training.distributed import broadcast, on_rank_zero
from boxless.training.faults import one_line_faults
from boxless.training.progress import say
from boxless.untrusted import parse_json, parse_yaml

FORMAT = 1
"""Version of the layout and of what its files mean. This boxless reads it and all before it; it goes up where an older
boxless would read a run wrongly, and a run of each version is kept as a test."""

FREE = ("workers", "stop_on_collapse", "loggers")
"""Keys of a recipe that may change when a run goes on: no number depends on them."""


@dataclass(frozen=True)
class Run:
    """A run's folder, finished or not; each property reads its file when it is asked for.

    Attributes:
        path: the folder.

    Raises:
        UserError: if a newer boxless wrote it in a format that this one does not know.
    """

    path: Path

    def __post_init__(self) -> None:
        environment = self.environment
        written = environment.get("format", FORMAT)
        if isinstance(written, int) and written > FORMAT:
            needed = environment.get("boxless", "newer")
            raise UserError(
                f"{self.path}: a run of format {written}, written by boxless {needed}; this is boxless "
                f"{version('boxless')}, which reads formats up to {FORMAT}: pip install 'boxless>={needed}'"
            )

    @classmethod
    def open(cls, where: str | Path, trained: bool = False) -> Self:
        """The run in a folder that a user names.

        Args:
            where: the folder.
            trained: true if it must have weights.

        Raises:
            UserError: if it is not a run, or has no weights though it must.
        """
        run = cls(Path(where))
        if not run.recipe_file.is_file():
            reason = "is not a run (no recipe.yaml in it)" if run.path.is_dir() else "no such folder"
            raise UserError(f"run {where}: {reason}; name the folder that boxless pretrain or finetune wrote")
        if trained and run.recipe and not run.weights.is_file():  # the recipe of a comparison raises
            raise UserError(f"run {where}: did not finish (no weights.safetensors); repeat its command to continue it")
        return run

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def recipe(self) -> TrainingRecipe:
        """The recipe that the run was made by.

        Raises:
            UserError: if it cannot be read, or is of another command.
        """
        recipe = load(self.recipe_file, object)
        if not isinstance(recipe, TrainingRecipe):
            raise UserError(
                f"run {self.path}: has a {type(recipe).__name__}, no weights; name a run of pretrain or finetune"
            )
        return recipe

    @property
    def settings(self) -> dict[str, Any]:
        """Every key of the recipe by its dotted name, as it is written: also keys that this version does not know.

        Raises:
            UserError: if it cannot be read.
        """
        return flat(_mapping(self.recipe_file, parse_yaml))

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.path / "weights.safetensors"

    @property
    def checkpoints(self) -> list[Path]:
        """The states that training can go on from, the oldest first."""
        return checkpoints(self.path / "checkpoints")

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return (self.path / "summary.json").is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """Scores, health, time and whatever else a finished run came to.

        Raises:
            UserError: if the run is not finished, or the file is damaged.
        """
        if not self.finished:
            raise UserError(f"{self.path}: not a finished run (no summary.json)")
        return _mapping(self.path / "summary.json", parse_json)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, command and inputs; {} if that was lost."""
        return self.read("environment.json")

    @property
    def inputs(self) -> dict[str, Any]:
        """Data and weights that the run uses; {} if that was lost."""
        return dict(self.environment.get("inputs", {}))

    @property
    def labels(self) -> dict[str, Any]:
        """Classes, skeleton and choice of images of a fine-tuning; {} if that was lost, or of a pretraining."""
        return self.read("labels.json")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that a fine-tuning has learned.

        Raises:
            UserError: if they were lost.
        """
        classes = self.labels.get("classes")
        if not isinstance(classes, list):
            raise UserError(
                f"{self.path / 'labels.json'}: expected the run's list of classes; copy it from the run's original "
                "folder"
            )
        return tuple(map(str, classes))

    @property
    def metrics(self) -> Metrics:
        """Name -> (steps, values) of everything that was logged; {} before the first step."""
        return read_metrics(self.path / "metrics.csv", [])

    def read(self, name: str, gaps: list[str] | None = None) -> dict[str, Any]:
        """A JSON file of the run, {} if there is none.

        Args:
            name: name of the file.
            gaps: collects a sentence for each part that is damaged and so left out.
        """
        return read_json(self.path / name, [] if gaps is None else gaps)


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; what is not a number becomes null, since JSON knows no NaN."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


@contextmanager
def training_in(out: Path, recipe: str, inputs: dict[str, Any], allow_changes: bool, quiet: bool) -> Iterator[bool]:
    """Hold the folder of a run, new or continued, on all processes; whether there is anything left to train.

    Raises:
        UserError: as `start_run` does, and with one line if something outside of the training fails.
    """
    with one_line_faults(out), on_rank_zero(lambda: start_run(out, recipe, inputs, allow_changes)) or nullcontext():
        finished = broadcast(Run(out).finished)
        if finished:
            say(f"{out}: this run is finished already", quiet)
        yield not finished


def start_run(out: Path, recipe: str, inputs: dict[str, Any], allow_changes: bool = False) -> IO[str]:
    """Make the folder of a run, or enter it again to continue.

    Args:
        out: the folder.
        recipe: the resolved recipe as YAML.
        inputs: data and weights that the run uses.
        allow_changes: go on with other settings or data than the run began with, and say what differs.

    Returns:
        The lock, to be closed when the run ends or fails: a traceback that somebody keeps would hold it.

    Raises:
        UserError: if the folder holds another run, or another process works on it.
    """
    check_place(out)
    make_folder(out)
    lock = lock_file(out / "lock", f"--out {out}")
    try:
        _describe_run(out, recipe, inputs, allow_changes)
    except BaseException:
        lock.close()
        raise
    return lock


def check_place(out: Path) -> None:
    """Raise UserError if `out` is neither free for a run nor one."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder for the run")
    if out.is_dir() and not (out / "recipe.yaml").exists() and any(not _begun(path.name) for path in out.iterdir()):
        raise UserError(f"--out {out}: holds other files and is no run of boxless; name an empty or a new folder")


def check_results(folder: Path, file: str) -> None:
    """Raise UserError if `folder` is neither free for results nor holds `file`, which is theirs, whole or begun."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder}: is a file; name a folder")
    ours = any((folder / name).exists() for name in (file, file + PARTIAL))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise UserError(f"out {folder}: holds other files; name a new or an empty folder")


def begin_results(folder: Path, file: str) -> None:
    """Make the folder of results, which `check_results` then knows even where a kill comes before `file` is whole."""
    make_folder(folder)
    (folder / f"{file}{PARTIAL}").touch()


def _begun(name: str) -> bool:
    """Return whether a file may exist in a run's folder before its recipe; a run may be killed while it begins."""
    return name in ("lock", "figures") or name.endswith(PARTIAL)


def _describe_run(out: Path, recipe: str, inputs: dict[str, Any], allow_changes: bool) -> None:
    processes = Processes.of(os.environ).world
    if (out / "checkpoints").is_dir() or (out / "summary.json").exists():
        _check_continued(Run(out), recipe, inputs, allow_changes, processes)
    write_text(out / "recipe.yaml", recipe)
    environment = {
        "format": FORMAT,
        "inputs": inputs,
        "boxless": version("boxless"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processes": processes,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "environment.json", environment)


def _check_continued(run: Run, recipe: str, inputs: dict[str, Any], allow_changes: bool, processes: int) -> None:
    """Compare a run that goes on with what it was started with.

    Raises:
        UserError: settings or data have changed, and are not allowed to.
    """
    changed = _changes(run, recipe, inputs) if run.recipe_file.exists() else []
    if changed and not allow_changes:
        raise UserError(
            f"--out {run.path}: holds a run with other settings ({'; '.join(changed[:5])}); restore these to "
            "continue it, name another folder, or (pretrain, finetune) add --allow-changes"
        )
    for change in changed:
        print(f"{run.path}: continuing although {change}", file=sys.stderr, flush=True)
    before = run.environment.get("processes", processes)
    if before != processes:
        print(
            f"{run.path}: continuing with {processes} processes, not {before}: sums are rounded in another order, so "
            "that the weights will not be bit for bit those of an undisturbed run",
            file=sys.stderr,
            flush=True,
        )


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a file of a run; raises UserError if it is missing or damaged."""
    try:
        content = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it from the original run") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: cannot be read (names no keys); copy it from the original run")
    return content


def _changes(run: Run, recipe: str, inputs: dict[str, Any]) -> list[str]:
    """Differences from the settings that a run was started with, except `FREE` keys."""
    old_inputs = run.inputs
    changed = [
        f"{key} was {old_inputs[key]}, is {value}"
        for key, value in inputs.items()
        if value != old_inputs.get(key, value)  # an older version may have written down less
    ]
    new = flat(parse_yaml(recipe))
    named = run.settings.keys() | new.keys()
    today = flat(parse_yaml(describe(load(run.recipe_file, object), run.recipe_file)))  # an older version had others
    old = {key: value for key, value in today.items() if key in named}
    changed += [
        f"{key} was {old[key]}, is {new.get(key)}" for key in old if old[key] != new.get(key) and key not in FREE
    ]
    return changed
