"""Files of a run's folder, read as far as they go: a run may be unfinished, and files missing or damaged."""

import csv
from pathlib import Path
from typing import Any

from boxless.untrusted import parse_json

Metrics = dict[str, tuple[list[int], list[float]]]
"""Name -> (steps, values)."""

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
"""Known keys of each file: a type, [of a list's entries], {of a mapping's keys, * any}, or (alternatives)."""


def read_json(file: Path, gaps: list[str]) -> dict[str, Any]:
    """A JSON file of a run, {} if there is none; a sentence is added to `gaps` for each part that is damaged."""
    if not file.is_file():
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        gaps.append(f"{file.name} cannot be read ({' '.join(str(error).split())[:120]}); what it says is left out.")
        return {}
    known = content if isinstance(content, dict) else {}
    shape = SHAPES.get(file.name, {})
    damaged = [key for key, value in known.items() if key in shape and not fits(value, shape[key])]
    gaps += [f"{file.name}: what it says of {key} is damaged and left out." for key in damaged]
    return {key: value for key, value in known.items() if key not in damaged}


def read_metrics(file: Path, gaps: list[str]) -> Metrics:
    """metrics.csv, {} if there is none; a last line that is only half written is no gap."""
    metrics: Metrics = {}
    damaged = 0
    try:
        lines = file.read_text(errors="replace").splitlines(keepends=True)[1:]
    except OSError:
        return metrics
    for line in lines:
        if not line.endswith("\n"):
            continue
        try:
            (row,) = csv.reader([line])
            step, name, value = int(row[0]), row[1], float(row[2])
            if not 0 <= step < 1e15:
                raise ValueError
        except (ValueError, IndexError, csv.Error):
            damaged += 1
            continue
        steps, values = metrics.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    if damaged:
        gaps.append(f"metrics.csv has {damaged} lines that cannot be read; they are left out.")
    return metrics


def fits(value: Any, shape: Any) -> bool:
    """Return whether a value has a shape of `SHAPES`."""
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


def flat(content: object, prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by their dotted keys."""
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    return {key: value for name, part in content.items() for key, value in flat(part, f"{prefix}{name}.").items()}
