"""Readers of untrusted input: text that may nest, grow or ask for objects, and file names that may lead anywhere."""

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

YAML_LIMIT = 2_000_000
"""Characters of a YAML file; a megabyte takes half a minute, and a list of 20,000 classes half a megabyte."""
YAML_DEPTH = 50
"""Lists within lists; Python's own limit is whatever a library has set it to."""


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Pause Python's cycle collector, which would walk millions of parsed lists or elements again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; anything wrong with it, such as endless nesting, is a ValueError."""
    before = sys.getrecursionlimit()  # which PyTorch raises beyond what Python's stack has room for
    sys.setrecursionlimit(min(before, 1000))
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    finally:
        sys.setrecursionlimit(before)


def parse_yaml(text: str, as_text: str = "") -> Any:
    """Parse YAML with plain values only and no duplicate keys.

    Values below the key `as_text` stay as they are written: classes may be called yes, no or 010.

    Aliases (`*name`) are refused: with them a file of a kilobyte holds lists of lists that no memory has room for.

    Raises:
        ValueError: in one line.
    """
    if len(text) > YAML_LIMIT:
        raise ValueError(f"longer than {YAML_LIMIT:,} characters")
    try:
        loader = _Plain(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _keep_text([value for key, value in node.value if key.value == as_text])
        return None if node is None else loader.construct_document(node)
    except Exception as error:  # a wrong date raises ValueError, a wrong !!bool KeyError, ...
        raise ValueError(" ".join(str(error).split())[:200]) from error


def inside(folder: Path, name: str) -> Path | None:
    """The file that `name` says in a folder, perhaps in one below it; None if the name leads out of the folder.

    Links are followed: who made the folder made them.
    """
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep, 1)[0] == os.pardir:
        return None
    return folder / name


def is_there(path: Path) -> bool:
    """Return whether the path is an existing file, and not a folder, device, pipe or impossible name."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def is_folder(path: Path) -> bool:
    """Return whether the path is an existing folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def printable(text: str) -> str:
    """Text as a terminal may show it: line breaks, escape sequences and halves of characters are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _keep_text(nodes: list[yaml.Node]) -> None:
    for node in nodes:
        if isinstance(node, yaml.ScalarNode) and node.value:
            node.tag = "tag:yaml.org,2002:str"
        elif isinstance(node, yaml.SequenceNode):
            _keep_text(node.value)
        elif isinstance(node, yaml.MappingNode):
            _keep_text([value for _, value in node.value])


class _Plain(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise ValueError(f"line {event.start_mark.line + 1}: write *{event.anchor} out: aliases are not allowed")
        if self._depth == YAML_DEPTH:
            raise ValueError("nested too deeply")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
