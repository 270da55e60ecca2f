"""The shipped recipes by name, and recipe files: a shipped name plus the keys that differ."""

import ast
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from boxless.errors import UserError
from boxless.recipes import shipped
from boxless.recipes.overrides import did_you_mean, from_mapping, to_yaml
from boxless.untrusted import parse_yaml

R = TypeVar("R")


def names() -> list[str]:
    """Return the names of the shipped recipes, such as `soco-r50-fpn`, sorted; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(shipped.__path__))


def docstring(name: str) -> str:
    """Return the docstring of a shipped recipe, read from its file without importing it.

    Raises:
        UserError: for an unknown name.
    """
    spec = find_spec(_module(name))
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def load(name_or_file: str | Path, expected: type[R]) -> R:
    """Return a shipped recipe by name, or the one that a YAML file describes (`recipe: NAME` and the keys that differ).

    Raises:
        UserError: for an unknown name or key, an unreadable file, or a recipe of another kind than `expected`.
    """
    name, changes = _read(Path(name_or_file)) if _is_file(name_or_file) else (str(name_or_file), {})
    try:
        recipe = importlib.import_module(_module(name)).RECIPE
        if not isinstance(recipe, expected):
            raise UserError(
                f"recipe {name!r} is a {type(recipe).__name__}, expected a {expected.__name__}: see boxless recipes"
            )
        return from_mapping(recipe, changes)
    except UserError as error:
        if not _is_file(name_or_file):
            raise
        raise UserError(f"{name_or_file}: {error}") from error


def describe(recipe: object, name_or_file: str | Path) -> str:
    """Return the YAML text that `load` turns back into `recipe`; `name_or_file` is where it came from.

    Raises:
        UserError: as `load` does.
    """
    name = _read(Path(name_or_file))[0] if _is_file(name_or_file) else str(name_or_file)
    return f"recipe: {name}\n{to_yaml(recipe)}"


def _is_file(name_or_file: str | Path) -> bool:
    return Path(name_or_file).suffix in (".yaml", ".yml")


def _read(file: Path) -> tuple[str, dict[str, object]]:
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: can't read this recipe file ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file}: not a YAML file ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), str):
        raise UserError(
            f"{file}: expected a line `recipe: NAME` with the shipped recipe to start from (see boxless recipes)"
        )
    return content.pop("recipe"), content


def _module(name: str) -> str:
    if name not in names():
        nearest = did_you_mean(name, names()) or ":"
        raise UserError(
            f"unknown recipe {name!r}{nearest} shipped are {', '.join(names()) or 'none'}; a file ends in .yaml"
        )
    return f"{shipped.__name__}.{name.replace('-', '_')}"
