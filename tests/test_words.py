"""Docstrings and help texts name the thing first."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "boxless"
FILES = sorted(SOURCE.rglob("*.py"))
FRAGMENT = re.compile(r"(Of|What|That|Whether|How|Where)\b")


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, of those below constants and fields, and of each argument in them."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        fields = [after for before, after in pairwise(node.body) if isinstance(before, ast.Assign | ast.AnnAssign)]
        for statement in [*node.body[:1], *fields]:
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.lineno, text.strip()
                    for argument in re.findall(r"^ +\w[\w, *]*: (\w.*)", text, re.M):
                        yield statement.lineno, argument[0].upper() + argument[1:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_text_begins_with_a_fragment(file: Path) -> None:
    wrong = [f"{line}: {text.splitlines()[0]}" for line, text in texts(file) if FRAGMENT.match(text)]
    assert not wrong
