"""Which file a user means by weights."""

from pathlib import Path

from boxless.errors import UserError
from boxless.runs.folder import Run


def weights_file(where: str | Path) -> Path:
    """The weights of a run's folder, or the file itself.

    Raises:
        UserError: where there is neither.
    """
    path = Path(where)
    if path.is_dir():
        run = Run(path)
        if not run.weights.is_file():
            state = "did not finish; run the same command again" if run.recipe_file.is_file() else "is not a run"
            raise UserError(f"weights {path}: this folder {state} (no weights.safetensors)")
        return run.weights
    if not path.is_file():
        raise UserError(f"weights {path}: no such file or run")
    return path
