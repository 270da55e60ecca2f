"""Change any key of a recipe: nested frozen dataclasses in, a checked copy out, and the way to YAML and back."""

import dataclasses
import difflib
import functools
import math
import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from boxless.errors import UserError

R = TypeVar("R")


class Key(NamedTuple):
    """One settable value of a recipe: its type, its present value and the attribute docstring ("" without one)."""

    type: Any
    value: object
    help: str


def override(recipe: R, changes: Mapping[str, object]) -> R:
    """Return a copy of `recipe` with `changes` applied.

    `{"optim.base_lr": "0.1"}` and `{"optim": {"base_lr": 0.1}}` say the same: strings are parsed as on the command
    line, other values are checked as they are.

    Raises:
        UserError: for an unknown key (with the near ones), a value of the wrong type, or one that the recipe refuses.
    """
    recipe = choose(recipe, changes)
    entries = dict(_walk(recipe, ""))
    groups = {name: entry for name, entry in entries.items() if _is_group(entry.value)}
    whole = {name: value for name, value in changes.items() if name in groups and not isinstance(value, Mapping)}
    if whole and len(whole) < len(changes):  # the other keys are those of the new groups
        return override(override(recipe, whole), {name: value for name, value in changes.items() if name not in whole})
    leaves = {name: entry for name, entry in entries.items() if name not in groups}
    flat = dict(_flatten(changes, groups, ""))
    for group, classes in _choices(recipe).items():
        flat = _of_chosen(flat, group, groups[group].value, classes)
    values = {name: _checked(name, value, leaves, groups) for name, value in flat.items()}
    return _rebuilt(recipe, values, "")


def choose(recipe: R, changes: Mapping[str, object]) -> R:
    """Return `recipe` with the classes that `changes` choose, such as another detector's by `detector.kind`.

    A field with `metadata={"choices": {name: class}}` holds one of these dataclasses, whose first field is its name.
    The keys that two classes share keep their values, the others have their defaults.
    """
    for group, classes in _choices(recipe).items():
        old: Any = functools.reduce(getattr, group.split("."), recipe)
        names = [name for name, entry in _walk(recipe, "") if _is_group(entry.value)]
        new = dict(_flatten(changes, names, "")).get(f"{group}.{dataclasses.fields(old)[0].name}")
        if isinstance(new, str) and new in classes and type(old) is not classes[new]:
            ours = {field.name for field in dataclasses.fields(old)[1:]}
            kept = {f.name: getattr(old, f.name) for f in dataclasses.fields(classes[new])[1:] if f.name in ours}
            recipe = _rebuilt(recipe, {group: classes[new](**kept)}, "")
    return recipe


def _choices(recipe: object, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Return the names of the groups whose class can be chosen, each with its classes by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for field in dataclasses.fields(recipe):  # type: ignore[arg-type]
        if "choices" in field.metadata:
            found[prefix + field.name] = field.metadata["choices"]
        elif _is_group(value := getattr(recipe, field.name)):
            found |= _choices(value, f"{prefix}{field.name}.")
    return found


def _of_chosen(flat: Mapping[str, object], group: str, chosen: object, classes: Mapping[str, Any]) -> dict[str, object]:
    """Return the changes without those for classes that were not chosen.

    Recipes used to have the keys of all detectors, some of them below a detector's name: `detector.fcn.head` is
    `detector.head` if FCN is chosen. Keys of other detectors have no effect, so any value may stand there.
    """
    own = {field.name for field in dataclasses.fields(chosen)}  # type: ignore[arg-type]
    others = {field.name for each in classes.values() for field in dataclasses.fields(each)} - own
    result: dict[str, object] = {}
    for name, value in flat.items():
        key, _, rest = name.removeprefix(f"{group}.").partition(".")
        if not name.startswith(f"{group}.") or not (key in others or key in classes):
            result[name] = value
        elif key in classes and type(chosen) is classes[key]:
            inner = value if isinstance(value, Mapping) else {rest: value}
            result |= {f"{group}.{each}": content for each, content in inner.items()}
    return result


def renamed(given: MutableMapping[str, Any], old: str, new: str, value: Any) -> Any:
    """Return `value`, or what `given` still has by the old name, which is taken out of it and advised against."""
    if old not in given:
        return value
    print(f"boxless: {old} is now called {new}", file=sys.stderr)
    return given.pop(old)


def to_yaml(recipe: object) -> str:
    """Return every key of the recipe as YAML text, nested and ordered as the dataclasses; `override` reads it back."""
    return yaml.dump(_plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def keys(recipe: object) -> dict[str, Key]:
    """Return every settable key by its dotted name, in the order of the fields."""
    return {name: entry for name, entry in _walk(recipe, "", hide=True) if not _is_group(entry.value)}


def accepted(recipe: object) -> set[str]:
    """Return the names of all keys that `override` takes: those of `keys`, unused groups' and other classes'."""
    names = {name for name, entry in _walk(recipe, "") if not _is_group(entry.value)}
    for group, classes in _choices(recipe).items():
        for name, each in classes.items():
            own = [key for key, entry in _walk(each(), "") if not _is_group(entry.value)]
            names |= {f"{begin}.{key}" for key in own for begin in (group, f"{group}.{name}")}
    return names


def parse(key: str, expected: Any, value: object) -> Any:
    """Return `value` as the type `expected`; `key` is how the message names it.

    Several values may be written without brackets: `0.9,0.999` reads as `[0.9, 0.999]`.

    Raises:
        UserError: when the value is not of that type.
    """
    parser = _reader(expected)
    value = str(value) if isinstance(value, PurePath) else value
    try:
        if not isinstance(value, str):
            return _finite(parser.parse_object({"value": value}).value)
        bare = is_sequence(expected) and not _is_text(expected) and value != "null" and not value.startswith("[")
        return _finite(parser.parse_args([f"--value=[{value}]" if bare else f"--value={value}"]).value)
    except (ArgumentError, ValueError, OverflowError):
        raise UserError(f"{key}: expected {spell(expected)}, got {value!r:.200}") from None


def _finite(value: Any) -> Any:
    """The value itself; raises ValueError if it is NaN or infinite, which no setting is."""
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(number)
    return value


@functools.cache
def _reader(expected: Any) -> ArgumentParser:
    """Parser of values of a type; cached, because a recipe has two hundred values."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=expected)
    return parser


def spell(expected: Any) -> str:
    """Return a type as a user would say it: `float or null`, `sgd|lars`, `float,float`."""
    arguments = get_args(expected)
    if get_origin(expected) in (Union, UnionType):
        return " or ".join(dict.fromkeys(spell(member) for member in arguments))
    if get_origin(expected) is Literal:
        return "|".join(map(str, arguments))
    if get_origin(expected) is tuple:
        return ",".join("..." if member is Ellipsis else spell(member) for member in arguments)
    if is_sequence(expected) and arguments:
        return f"{spell(arguments[0])},..."
    return "null" if expected is NoneType else getattr(expected, "__name__", str(expected)).lower()


def is_sequence(expected: Any) -> bool:
    """Return whether the type, or a member of the union, holds several values (a string does not)."""
    if get_origin(expected) in (Union, UnionType):
        return any(is_sequence(member) for member in get_args(expected))
    kind = get_origin(expected) or expected
    return isinstance(kind, type) and issubclass(kind, Sequence) and not issubclass(kind, str)


def _is_text(expected: Any) -> bool:
    if get_origin(expected) in (Union, UnionType):
        return any(_is_text(member) for member in get_args(expected))
    return isinstance(expected, type) and issubclass(expected, str | PurePath)


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """Return `: did you mean 'x'?` with up to three near choices, or "" where none is near."""
    last = _words(word)[-1]
    near = difflib.get_close_matches(word, choices, cutoff=0.8)
    near = near or [choice for choice in choices if any(part.startswith(last) for part in _words(choice))]
    near = near or difflib.get_close_matches(word, choices, cutoff=0.6)
    return f": did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


def _flatten(changes: Mapping[str, object], groups: Collection[str], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if name in groups and isinstance(value, Mapping):
            yield from _flatten(value, groups, f"{name}.")
        else:
            yield name, value


def _checked(name: str, value: object, leaves: Mapping[str, Key], groups: Mapping[str, Key]) -> object:
    if name in groups:
        if isinstance(value, groups[name].type):
            return value
        raise UserError(f"{name!r} is a group of keys: {_keys_of(name, leaves)}")
    if name not in leaves:
        group = name.rpartition(".")[0]
        raise UserError(f"unknown key {name!r}{did_you_mean(name, leaves) or ':'} {_keys_of(group, leaves)}")
    leaf = leaves[name]
    if name.endswith(".name") and get_args(leaf.type) == (leaf.value,) and value != leaf.value:
        group = name.rpartition(".")[0]
        raise UserError(
            f"{name} is {leaf.value!r} in this recipe and can't become {value!r}: "
            f"choose a recipe of that {group} (boxless recipes lists them)"
        )
    return parse(name, leaf.type, value)


def _rebuilt(node: R, values: Mapping[str, object], prefix: str) -> R:
    """Build `node` again from the inside out, so that each dataclass's own checks see the new values.

    The ValueError of such a check begins with the name of a field.
    """
    new: dict[str, object] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        name, old = prefix + field.name, getattr(node, field.name)
        if name in values:
            new[field.name] = values[name]
        elif _is_group(old):
            new[field.name] = _rebuilt(old, values, f"{name}.")
    try:
        return dataclasses.replace(node, **new)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error


def _keys_of(group: str, leaves: Collection[str]) -> str:
    """List the keys of the innermost existing group at or above `group`."""
    while group and not any(name.startswith(f"{group}.") for name in leaves):
        group = group.rpartition(".")[0]
    below = [name.removeprefix(f"{group}.") for name in leaves if not group or name.startswith(f"{group}.")]
    heads = dict.fromkeys(name.partition(".")[0] + (".*" if "." in name else "") for name in below)
    return f"keys of {group}: {', '.join(heads)}" if group else f"keys: {', '.join(heads)}"


def _walk(node: object, prefix: str, hide: bool = False) -> Iterator[tuple[str, Key]]:
    """Yield leaves and groups alike, by dotted name.

    `hide` leaves out unused groups, those of a field with `metadata={"used_if": f}` where `f(node)` is false.
    """
    hints, helps = _described(type(node))  # type: ignore[arg-type]
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(node, field.name)
        if hide and "used_if" in field.metadata and not field.metadata["used_if"](node):
            continue
        group = Key(hints[field.name], value, " ".join(helps.get(field.name, "").split()))
        yield name, group
        if not _is_group(value):
            continue
        for key, entry in _walk(value, f"{name}.", hide):
            if "choices" in field.metadata and key == f"{name}.{dataclasses.fields(value)[0].name}":
                entry = Key(Literal[tuple(field.metadata["choices"])], entry.value, group.help)
            yield key, entry


@functools.cache
def _described(cls: type) -> tuple[dict[str, Any], dict[str, str]]:
    """Types and attribute docstrings of a dataclass's fields; read from its source once, which takes milliseconds."""
    owners = [owner for owner in reversed(cls.__mro__) if dataclasses.is_dataclass(owner)]  # its own attributes alone
    docs = [entry for owner in owners for entry in docstring_parser.parse_from_object(owner).params]
    return get_type_hints(cls), {entry.arg_name: entry.description or "" for entry in docs}


def _is_group(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


class _Dumper(yaml.SafeDumper):
    """Writes `[0.5, 1.0]` on one line."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def _plain(value: Any) -> Any:
    if _is_group(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(member) for member in value]
    return str(value) if isinstance(value, PurePath) else value
