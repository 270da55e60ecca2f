"""Docstrings and help texts name the thing first."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from boxless import cli
from boxless.recipes.load import load, names
from boxless.recipes.overrides import keys

SOURCE = Path(__file__).parents[1] / "src" / "boxless"
FILES = sorted(SOURCE.rglob("*.py"))
VAGUE = re.compile(r"(Of|What|That|Whether|How|Where)\b", re.IGNORECASE)
VAGUE_HELP = re.compile(r"(Of|What|That|Whether|How|Where|Which|Whose)\b")


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, of those below constants and fields, and of each argument in them."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        fields = [after for before, after in pairwise(node.body) if isinstance(before, ast.Assign | ast.AnnAssign)]
        for statement in [*node.body[:1], *fields]:
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.lineno, text.strip()
                    yield from ((statement.lineno, argument) for argument in re.findall(r"^ +\w+: (\w.*)", text, re.M))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_docstring_begins_with_the_thing(file: Path) -> None:
    assert not [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(file) if VAGUE.match(text)]


def help_texts() -> dict[str, str]:
    """The help text of each flag of each command and of each key of each recipe, but for a method's fixed name."""
    entries = {f"boxless {name} --{key}": entry for name in cli.COMMANDS for key, entry in cli._own(name).items()}
    entries |= {f"{name}: {key}": entry for name in names() for key, entry in keys(load(name, object)).items()}
    return {name: entry.help for name, entry in entries.items() if not re.search(r"\bmethod\.(\w+\.)?name$", name)}


def test_every_flag_and_key_has_a_help_text_that_begins_with_the_thing() -> None:
    assert not {name: text for name, text in help_texts().items() if not text or VAGUE_HELP.match(text)}
