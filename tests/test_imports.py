"""Imports point one way; the package and its help load nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "boxless"

ROOMS = {
    "files": set(),
    "parallel": set(),
    "untrusted": set(),
    "launch": set(),
    "geometry": set(),
    "losses": set(),
    "training": {"launch"},
    "data": {"geometry", "parallel", "training"},
    "detectors": {"geometry"},
    "interop": {"detectors"},
    "proposals": {"geometry", "data", "parallel", "training"},
    "methods": {"geometry", "data", "detectors", "losses", "training"},
    "evaluation": {"geometry", "data", "detectors"},
    "plots": {"geometry", "data", "evaluation"},
    "recipes": {"methods", "detectors", "data", "training"},
}
UPPER = {
    "runs": {*ROOMS},
    "tasks": {*ROOMS, "runs"},
    "figures": {*ROOMS, "runs", "tasks"},
    "report": {*ROOMS, "runs", "tasks", "figures"},
    "export": {*ROOMS, "runs", "tasks"},
}
ALLOWED: dict[str, set[str]] = {
    **ROOMS,
    **UPPER,
    "errors": set(),
    "commands": {*ROOMS, *UPPER, "boxless"},
    "cli": {"commands", "recipes", "boxless", "launch"},
    "boxless": {"commands", "recipes", "figures", "report", "export", "cli"},
}


def room(module: str) -> str:
    """The room of `boxless.data.annotations.coco` is `data`; the package's own top files are the room `boxless`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "boxless"


def imported(file: Path) -> Iterator[str]:
    """Yield the boxless modules that a file imports anywhere, function bodies included."""
    package = ["boxless", *file.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            names = [f"{start}{node.module or ''}".strip(".") + f".{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "boxless")


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_one_way(file: Path) -> None:
    here = room(".".join(["boxless", *file.relative_to(SOURCE).with_suffix("").parts]))
    allowed = ALLOWED[here] | {"errors", "files", "untrusted"}
    wrong = {name for name in imported(file) if room(name) not in allowed | {here}}
    assert not wrong, f"{here} may import only {sorted(allowed)}"


def test_every_room_is_in_the_table() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix in ("", ".py") and not path.name.startswith("__")}
    assert rooms <= set(ALLOWED)


@pytest.mark.parametrize("statement", ["import boxless", "import boxless.cli; boxless.cli.main(['--help'])"])
def test_nothing_heavy_is_loaded(statement: str) -> None:
    heavy = {"torch", "torchvision", "numpy", "cv2", "pyarrow", "lightning", "matplotlib", "sklearn", "PIL"}
    code = f"{statement}\nimport sys\nsys.exit(', '.join({heavy!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
