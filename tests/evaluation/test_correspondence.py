from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, conv2d, cosine_similarity
from torchvision.models import resnet18

from boxless.data.open import index_images
from boxless.data.transforms.color import Photometric
from boxless.evaluation import correspondence
from boxless.evaluation.correspondence import PairDataset, best_matches, cell_places, correspondence_accuracy


def accuracy(features: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    return correspondence_accuracy(best_matches(features, changed), *features.shape[-2:])


def test_best_match_and_accuracy_are_those_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 3, 4, generator=generator, dtype=torch.float64)
    changed = features.flip(-1) + 0.7 * torch.randn(features.shape, generator=generator, dtype=torch.float64)
    for image, (own, other) in enumerate(zip(features, changed, strict=True)):
        right = 0
        for y in range(3):
            for x in range(4):
                places = [(v, u) for v in range(3) for u in range(4)]
                similar = [float(cosine_similarity(own[:, y, x], other[:, v, u], 0)) for v, u in places]
                right += places[int(np.argmax(similar))] == (y, 3 - x)
        assert accuracy(features, changed)[image] == right / 12
    assert 0 < accuracy(features, changed).mean() < 1


def test_a_feature_that_moves_with_the_image_is_always_found() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 60, 60, generator=generator)
    mixing = torch.randn(16, 3, generator=generator)

    def extract(image: torch.Tensor) -> torch.Tensor:
        return torch.einsum("dc,bchw->bdhw", mixing, adaptive_avg_pool2d(image, 5) - 0.5)

    assert (accuracy(extract(images), extract(images.flip(-1))) == 1).all()
    assert accuracy(extract(images), extract(images)).max() <= 0.4  # unflipped, only the middle column is right


def test_a_resnets_cells_lie_symmetrically_at_one_px_more_than_its_stride_divides() -> None:
    torch.manual_seed(0)
    network = resnet18().double().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data += module.weight.data.flip(-1)  # what such kernels see of a mirrored image is mirrored
    body = torch.nn.Sequential(*list(network.children())[:-2])
    found = {}
    for size in (96, 97):
        images = torch.rand(4, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            found[size] = accuracy(body(images), body(images.flip(-1)))
    assert (found[97] == 1).all() and found[96].mean() < 0.4


def test_cells_lie_at_the_middle_of_what_they_look_at() -> None:
    features = image = torch.ones(1, 1, 225, 225, dtype=torch.float64, requires_grad=True)
    for stride in (2, 4, 8, 16, 32):
        features = conv2d(features, torch.ones(1, 1, 3, 3, dtype=torch.float64), stride=2, padding=1)
        cells = features.shape[-1]
        (gradient,) = torch.autograd.grad(features[0, 0, cells // 2, cells // 2], image, retain_graph=True)
        share = gradient[0, 0].sum(0) / gradient.sum()
        if stride > 2:
            middle = float((share * (torch.arange(225) + 0.5)).sum())
            assert float(cell_places(cells, 225)[cells // 2]) == pytest.approx(middle)
    assert cell_places(8, 225).tolist() == [0.5, 32.5, 64.5, 96.5, 128.5, 160.5, 192.5, 224.5]
    assert cell_places(4, 64).tolist() == [8, 24, 40, 56]  # patches of 16 px


def test_random_features_reach_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    features, changed = torch.randn(2, 300, 8, 4, 4, generator=generator)
    assert accuracy(features, changed).mean() == pytest.approx(1 / 16, abs=0.012)  # 3.4 standard errors


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"no image")
    return folder


def test_copies_are_mirrored_changed_and_repeatable(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_images(images)
    data = PairDataset(index, 40, seed=1)
    pair = data[0]
    assert pair.image.shape == pair.changed.shape == (3, 40, 40) and 0 <= pair.changed.min() <= pair.changed.max() <= 1
    assert torch.equal(pair.changed, PairDataset(index, 40, seed=1)[0].changed)
    assert not torch.equal(pair.changed, PairDataset(index, 40, seed=2)[0].changed)
    assert not torch.equal(pair.changed, pair.image.flip(-1))
    assert data[2].skipped == (str(images / "c.png"), "not an image in a known format")
    monkeypatch.setattr(correspondence, "CHANGE", Photometric(flip=1, jitter=0, gray=0, blur=0))
    plain = PairDataset(index, 40, seed=1)[1]
    torch.testing.assert_close(plain.changed, plain.image.flip(-1), rtol=0, atol=1e-6)
