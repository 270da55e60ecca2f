from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxless import statistics
from boxless.cli import main
from boxless.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of different sizes, grey and transparent ones among them, and one that is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(90, 110, (8, 5), dtype=np.uint8)).save(folder / "b.png")
    Image.fromarray(random.integers(0, 60, (3, 200, 3), dtype=np.uint8)).save(folder / "c.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def test_every_image_has_the_same_weight(images: Path) -> None:
    pixels = [np.array(Image.open(images / f"{name}.png").convert("RGB")).reshape(-1, 3) / 255 for name in "abc"]
    weights = np.concatenate([np.full(len(each), 1 / len(each)) for each in pixels])
    mean = np.average(np.concatenate(pixels), axis=0, weights=weights)
    variance = np.average((np.concatenate(pixels) - mean) ** 2, axis=0, weights=weights)
    found = statistics(str(images), quiet=True)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-10)
    assert found.images == 3 and [Path(path).name for path, _ in found.skipped] == ["broken.png"]
    assert statistics(str(images), workers=1, quiet=True) == found == statistics(str(images), workers=3, quiet=True)


def test_one_image_of_one_colour(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5), (255, 0, 51)).save(tmp_path / "a.png")
    found = statistics(str(tmp_path), quiet=True)
    assert found.mean == pytest.approx((1, 0, 0.2)) and found.std == (0, 0, 0)


def test_last_line_is_keys_of_a_recipe(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statistics", "--data", str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 images: mean 0.") and lines[1].startswith("1 images could not be read")
    flags = lines[-1].split()
    assert flags[::2] == ["--trunk.mean", "--trunk.std"]
    from boxless.methods.soco import SoCoConfig
    from boxless.recipes.overrides import override
    from boxless.recipes.schema import PretrainRecipe

    trunk = override(PretrainRecipe(SoCoConfig()), {"trunk.mean": flags[1], "trunk.std": flags[3]}).trunk
    found = statistics(str(images), quiet=True)
    assert trunk.mean == pytest.approx(found.mean, abs=5e-4) and trunk.std == pytest.approx(found.std, abs=5e-4)


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="check the data"):
        statistics(str(tmp_path), quiet=True)
    with pytest.raises(UserError, match="workers=0"):
        statistics(str(tmp_path), workers=0)
