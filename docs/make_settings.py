"""Put tables of settings into pages while they are built: `<!-- settings of soco -->` becomes the keys of that method.

A hook of mkdocs.yml. Names, defaults and words are those of the dataclasses, which state them once.
"""

import re
from dataclasses import fields
from typing import Any

from boxless.data.transforms.color import Photometric
from boxless.methods.all import METHODS
from boxless.recipes.overrides import Key, keys

LOOK = [field.name for field in fields(Photometric)]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its tables."""
    return re.sub(r"<!-- settings of ([\w-]+) -->", lambda found: table(METHODS[found[1]]()), markdown)


def table(config: object) -> str:
    """The keys of a method as a Markdown table; those of a view's colours as one row."""
    rows: dict[str, str] = {}
    for name, key in keys(config).items():
        head, _, last = name.rpartition(".")
        if head and last in LOOK:
            rows.setdefault(head, f"| `{head}.*` | | {_colours(head)}: {', '.join(f'`{each}`' for each in LOOK)} |")
        elif last != "name":
            rows[name] = f"| `{name}` | {_shown(key)} | {key.help} |"
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows.values()])


def _colours(head: str) -> str:
    return f"Colours and blur of {head.rpartition('.')[2].replace('_', ' ')} views"


def _shown(key: Key) -> str:
    value = key.value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
