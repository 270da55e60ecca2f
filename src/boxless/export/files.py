"""Files for other libraries, each with a text on how it is loaded there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.files import make_folder, write_text, written

LICENCE = """\
The weights are yours: boxless is under the Apache License 2.0 and claims nothing in what it trained. The images and the
weights that this training started from may have terms of their own."""


@dataclass(frozen=True)
class Export:
    """Weights for another library.

    Attributes:
        write: puts them at a path and returns what to say of it.
        text: instructions for loading them there.
    """

    write: Callable[[Path], str]
    text: str


def write(path: Path, export: Export) -> tuple[str, Path]:
    """Write weights and the text on how to load them, whole or not at all.

    The text lies beside a file as NAME.README.txt, and in a folder as README.txt.

    Returns:
        What to say of the weights, and the text's path.

    Raises:
        UserError: if a folder is not empty.
    """
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"out {path}: is a folder with files in it; name an empty or a new one")
    make_folder(path.parent)
    with written(path) as partial:
        said = export.write(partial)
    readme = path / "README.txt" if path.is_dir() else path.with_suffix(".README.txt")
    write_text(readme, export.text)
    return said, readme


def of_tensors(tensors: dict[str, Tensor], text: str) -> Export:
    """A .safetensors file."""
    content = save({key: value.contiguous() for key, value in tensors.items()}, metadata={"format": "pt"})
    return of_bytes(content, f"{len(tensors)} tensors", text)


def of_bytes(content: bytes, said: str, text: str) -> Export:
    """A file of that content."""

    def make(path: Path) -> str:
        path.write_bytes(content)
        return said

    return Export(make, text)


def listed(classes: Sequence[str], first: int) -> str:
    """Classes with their numbers, from `first` on."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes, first))


def text_of(about: str, trunk: TrunkConfig, code: list[str]) -> str:
    """The text: what it is, which colours it has seen, whose it is, and the lines of Python."""
    seen = f"It has seen RGB in 0..1, minus {list(trunk.mean)}, divided by {list(trunk.std)}."
    return "\n".join([about, seen, LICENCE, "", *code, ""])
