import os
from pathlib import Path

import hypothesis
import pytest

from boxless.data.scenes import make_scenes

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: each has one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("boxless", deadline=None, print_blob=True)
hypothesis.settings.load_profile("boxless")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real test images `coco256` and `neu-det`."""
    folder = Path(os.environ.get("BOXLESS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set BOXLESS_DATA")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few embedded scenes: 8 without labels, 4 to learn from, 2 to measure on."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    make_scenes(out, unlabelled=8, train=4, val=2, size=80)
    return out
