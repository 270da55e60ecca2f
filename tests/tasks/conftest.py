from pathlib import Path

import pytest

from boxless.data.scenes import make_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few embedded scenes: 8 without labels, 4 to learn from, 2 to measure on."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    make_scenes(out, unlabelled=8, train=4, val=2, size=80)
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the index of images out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
