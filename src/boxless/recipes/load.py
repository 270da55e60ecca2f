"""The shipped recipes by name, and recipe files: a shipped name plus the keys that differ."""

import ast
import inspect
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from boxless.errors import UserError
from boxless.recipes.overrides import did_you_mean, override, to_yaml
from boxless.untrusted import parse_yaml

R = TypeVar("R")


def names() -> list[str]:
    """Return the names of the shipped recipes, such as `soco-r50-fpn`, sorted."""
    return list(docstrings())


def _recipes_beside(name: str) -> dict[str, object]:
    """The recipes in a recipe's file by name: `soco-small` is the constant `SOCO_SMALL` of soco.py; {} if unknown."""
    file: ModuleType
    match name.partition("-")[0]:
        case "barlow":
            from boxless.recipes import barlow_twins as file
        case "byol":
            from boxless.recipes import byol as file
        case "compare" | "demo":
            from boxless.recipes import compare as file
        case "densecl":
            from boxless.recipes import densecl as file
        case "detco":
            from boxless.recipes import detco as file
        case "detr":
            from boxless.recipes import detr as file
        case "dino":
            from boxless.recipes import dino as file
        case "faster":
            from boxless.recipes import faster_rcnn as file
        case "fcn":
            from boxless.recipes import fcn as file
        case "fcos":
            from boxless.recipes import fcos as file
        case "joint":
            from boxless.recipes import joint as file
        case "keypoint":
            from boxless.recipes import keypoint_rcnn as file
        case "lc":
            from boxless.recipes import lc as file
        case "mask":
            from boxless.recipes import mask_rcnn as file
        case "moco":
            from boxless.recipes import moco as file
        case "pixpro":
            from boxless.recipes import pixpro as file
        case "retinanet":
            from boxless.recipes import retinanet as file
        case "rt":
            from boxless.recipes import rt_detr as file
        case "self":
            from boxless.recipes import self_emd as file
        case "simclr":
            from boxless.recipes import simclr as file
        case "soco":
            from boxless.recipes import soco as file
        case "sparse":
            from boxless.recipes import sparse_rcnn as file
        case "swav":
            from boxless.recipes import swav as file
        case "up":
            from boxless.recipes import up_detr as file
        case "vicreg":
            from boxless.recipes import vicreg as file
        case _:
            return {}
    return {_name(constant): value for constant, value in vars(file).items() if constant.isupper()}


def docstrings() -> dict[str, str]:
    """Return the docstring of each shipped recipe by name, sorted, from the files: importing them takes seconds."""
    found = {}
    for file in Path(__file__).parent.glob("*.py"):
        for statement, following in pairwise(ast.parse(file.read_text(encoding="utf-8")).body):
            match statement, following:
                case ast.Assign(targets=[ast.Name(constant)]), ast.Expr(ast.Constant(str(text))):
                    found[_name(constant)] = inspect.cleandoc(text)
    return dict(sorted(found.items()))


def _name(constant: str) -> str:
    return constant.lower().replace("_", "-")


def load(name_or_file: str | Path, expected: type[R]) -> R:
    """Return a shipped recipe by name, or the one that a YAML file describes (`recipe: NAME` and the keys that differ).

    Raises:
        UserError: for an unknown name or key, an unreadable file, or a recipe of another kind than `expected`.
    """
    if not _is_file(name_or_file):
        return _named(str(name_or_file), expected)
    name, changes = _read(Path(name_or_file))
    try:
        return override(_named(name, expected), changes)
    except UserError as error:
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


def _named(name: str, expected: type[R]) -> R:
    recipes = _recipes_beside(name)
    if name not in recipes:
        nearest = did_you_mean(name, names()) or ":"
        raise UserError(f"unknown recipe {name!r}{nearest} shipped are {', '.join(names())}; a file ends in .yaml")
    recipe = recipes[name]
    if not isinstance(recipe, expected):
        raise UserError(
            f"recipe {name!r} is a {type(recipe).__name__}, expected a {expected.__name__}: see boxless recipes"
        )
    return recipe


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
