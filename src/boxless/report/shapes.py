"""What the JSON files of a run hold; what does not fit was changed by hand or damaged, and a page leaves it out."""

from typing import Any

NUMBER = float
"""Finite, and small enough to count with."""
EVALUATION = {"scores": {"*": {"*": (NUMBER, None)}}, "per_class": {"*": {"*": (NUMBER, None)}}}
BOXES = {"truth": [[NUMBER]], "found": [[NUMBER]]}
SHAPES: dict[str, dict[str, Any]] = {
    "summary.json": {
        **dict.fromkeys(("steps", "seconds", "labelled_images", "images_seen", "images_per_second"), NUMBER),
        **dict.fromkeys(("health", "health_report"), str),
        **EVALUATION,
        "skipped": {"*": str},
        "trains": [str],
    },
    "progress.json": {
        **dict.fromkeys(("step", "total", "data_wait", "images_per_second", "seconds_left"), (NUMBER, None)),
        "status": str,
    },
    "environment.json": {"inputs": {}, "command": [str]},
    "evaluation.json": EVALUATION,
    "gallery.json": {
        **dict.fromkeys(("images", "score"), NUMBER),
        "data": str,
        "counts": {"*": NUMBER},
        "confusions": [[(str, NUMBER)]],
        "classes": [str],
        "shown": [{**dict.fromkeys(("file", "jpeg"), str), **dict.fromkeys(("width", "height"), NUMBER), **BOXES}],
    },
}
"""Of each file its known keys: a type, [of a list's entries], {of a mapping's keys, * any}, or (alternatives)."""


def misfits(content: dict[str, Any], name: str) -> list[str]:
    """The keys of the file `name` whose values are of another kind than they should be."""
    shape = SHAPES.get(name, {})
    return [key for key, value in content.items() if key in shape and not fits(value, shape[key])]


def fits(value: Any, shape: Any) -> bool:
    """Whether a value has a shape."""
    if isinstance(shape, tuple):
        return any(fits(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict) or any(key not in value for key in shape if key != "*"):
            return False
        return all(fits(each, shape.get(key, shape.get("*", object))) for key, each in value.items())
    if shape is NUMBER:
        return isinstance(value, int | float) and abs(value) < 1e15  # NaN fails too
    return value is None if shape is None else isinstance(value, shape)
