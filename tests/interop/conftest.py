import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def cells() -> ModuleType:
    """docs/make_weights.py, which makes foreign files and runs, and measures; the page of docs is written from it."""
    folder = str(Path(__file__).parents[2] / "docs")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("make_weights")
    finally:
        sys.path.remove(folder)
