"""Write a run's weights for another library."""

from pathlib import Path

from boxless.errors import UserError
from boxless.export.libraries import LIBRARIES
from boxless.files import make_folder, write_text, written
from boxless.runs.run import Run


def export_run(where: str, path: Path, to: str) -> tuple[str, Path]:
    """Write the weights and the text on how to load them, whole or not at all.

    The text lies beside a file as NAME.README.txt, and in a folder as README.txt.

    Args:
        where: the run's folder.
        path: the file or the folder to write.
        to: the library, a key of `LIBRARIES`.

    Returns:
        A description of the weights, and the text's path.

    Raises:
        UserError: if the run has no weights, the library has no place for them, or the folder is not empty.
    """
    export = LIBRARIES[to](Run.open(where, trained=True), path.name)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"out {path}: is a folder with files in it; name an empty or a new one")
    make_folder(path.parent)
    with written(path) as partial:
        description = export.write(partial)
    readme = path / "README.txt" if path.is_dir() else path.with_suffix(".README.txt")
    write_text(readme, export.text)
    return description, readme
