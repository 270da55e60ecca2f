"""Write a run's weights for another library."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from boxless.errors import UserError
from boxless.export.libraries import LIBRARIES
from boxless.export.trial import try_out
from boxless.files import make_folder, write_text, written
from boxless.runs.run import Run


def export_run(where: str, path: Path, to: str) -> tuple[str, Path]:
    """Write the weights and the text on how to load them, whole or not at all.

    The text lies beside a file under its whole name and .README.txt, and in a folder as README.txt. Before the file is
    there, its lines are run in another Python, on images of the run's validation data, and compared with boxless.

    Args:
        where: the run's folder.
        path: the file or the folder to write.
        to: the library, a key of `LIBRARIES`.

    Returns:
        A description of the weights and of the difference that was measured, and the text's path.

    Raises:
        UserError: if the run has no weights, the library has no place for them, the folder is not empty, or the
            library finds something else by them.
    """
    run = Run.open(where, trained=True)
    export = LIBRARIES[to](run, path.name)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"out {path}: is a folder with files in it; name an empty or a new one")
    make_folder(path.parent)
    with written(path) as partial, TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as place:
        draft = Path(place) / path.name  # under its own name, by which the lines look for it
        description = export.write(draft)
        outcome = try_out(run, export, Path(place))
        os.replace(draft, partial)
    readme = path / "README.txt" if path.is_dir() else path.with_name(f"{path.name}.README.txt")
    write_text(readme, export.text)
    return "; ".join(filter(None, (description, outcome))), readme
