"""Ids as labels have them: numbers or text, counted from 0 or from 1."""

from collections.abc import Collection, Iterable
from typing import Any


class Ids:
    """Takes 7, 7.0 and "7" for one id, unless the ids of a file are different ones only so.

    Args:
        listed: values that a file has as ids, of any kind.
    """

    def __init__(self, listed: Iterable[Any]) -> None:
        found = {value for value in listed if type(value) in (int, float, str)}
        self.loose = len({_plain(value) for value in found}) == len(found)

    def __call__(self, value: Any) -> int | str:
        """The id that a value stands for; empty if it is none."""
        if type(value) is int:
            return value
        if type(value) is str and not self.loose:
            return value
        return _plain(value)


def _plain(value: Any) -> int | str:
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else ""
    if type(value) is not str:
        return ""
    text = value.strip()
    return int(text) if text.isdecimal() and len(text) < 19 else text


def other_start(file: object, key: str, used: Collection[Any], known: Collection[Any], what: str) -> str:
    """Say that ids count from another number than what they name; empty if they do not.

    Args:
        file: the labels.
        key: under which the ids are, such as category_id.
        used: ids under that key.
        known: ids that exist.
        what: has these, such as categories.
    """
    numbers = {value for value in used if isinstance(value, int)}
    if not numbers or numbers <= set(known):
        return ""
    for step, change in ((1, "add 1 to"), (-1, "subtract 1 from")):
        if {number + step for number in numbers} <= set(known):
            low, first = min(numbers), min(value for value in known if isinstance(value, int))
            return f"{file}: {key} counts from {low} and the ids of {what} from {first}; {change} every {key}"
    return ""
