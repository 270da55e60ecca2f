"""A box that was found in one view lies where it belongs in the other, and patches hide what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxless.data import two_views
from boxless.data.detection import AugmentConfig
from boxless.data.open import index_images
from boxless.data.transforms.color import Photometric
from boxless.data.two_views import TwoViewDataset, erase
from boxless.geometry.affine import compose, crop_and_resize, mirror
from boxless.geometry.view import View

BOX = (40, 24, 72, 56)
"""The only white rectangle of the image, px."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    return folder


def bright(view: View) -> list[float]:
    """The rectangle that is brighter than the rest of a view."""
    rows, columns = np.nonzero(view.image[0].float().mean(0).numpy() > 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_pass_from_view_to_view_where_the_pixels_do(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_views, "ERASED", ())
    monkeypatch.setattr(two_views, "STRONG", Photometric(jitter=0, gray=0, blur=0))
    augment = AugmentConfig(vertical_flip=True, zoom=(0.5, 1.3))
    dataset = TwoViewDataset(index_images(images, images.parent / "cache"), (96, 120), 200, augment, seed=0)
    signs = set()
    for epoch in range(24):
        views = dataset[epoch, 0]
        weak = torch.tensor([[bright(views.weak)]])
        (moved,), (visible,) = views.strong.boxes(views.weak.source_boxes(weak.float()))
        assert visible > 0.3
        assert torch.allclose(moved, torch.tensor([bright(views.strong)]).float(), atol=2.1)
        signs |= {tuple((view.from_source[0, [0, 1], [0, 1]] > 0).tolist()) for view in (views.weak, views.strong)}
    assert len(signs) == 4  # not flipped, in one way, in the other, in both


def test_boxes_pass_from_view_to_view_exactly() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        source = np.sort(random.uniform(0, 500, (2, 2)), axis=0).reshape(-1)[[0, 1, 2, 3]]
        views, wanted = [], []
        for _ in range(2):  # windows, scales and flips, in float64 by hand
            left, top, scale = random.uniform(-50, 50), random.uniform(-50, 50), random.uniform(0.3, 2)
            width, height, flipped = round(900 * scale), round(800 * scale), random.random() < 0.5
            window = torch.tensor([[left, top, left + 900, top + 800]], dtype=torch.float32)
            move = compose(mirror(width, torch.tensor([flipped])), crop_and_resize(window, width, height))
            views.append(View(torch.zeros(1, 3, height, width, dtype=torch.uint8), move))
            x = (source[[0, 2]] - float(window[0, 0])) * width / float(window[0, 2] - window[0, 0])
            y = (source[[1, 3]] - float(window[0, 1])) * height / float(window[0, 3] - window[0, 1])
            x = np.sort(width - x) if flipped else x
            wanted.append(np.clip([x[0], y[0], x[1], y[1]], 0, [width, height, width, height]))
        inside, _ = views[0].boxes(torch.tensor(source, dtype=torch.float32).view(1, 1, 4))
        whole = np.allclose(views[0].source_boxes(inside)[0, 0].numpy(), source, atol=1e-3)
        moved, _ = views[1].boxes(views[0].source_boxes(inside))
        if whole:
            np.testing.assert_allclose(moved[0, 0].numpy(), wanted[1], atol=2e-4)


def test_a_worked_example_of_two_views() -> None:
    weak = View(torch.zeros(1, 3, 600, 800), compose(mirror(800, torch.tensor([True])), scaled(1.25)))
    strong = View(torch.zeros(1, 3, 360, 480), scaled(0.75))
    moved, visible = strong.boxes(weak.source_boxes(torch.tensor([[[425, 62.5, 675, 250]]])))
    assert torch.allclose(moved, torch.tensor([[[75, 37.5, 225, 150]]]), atol=1e-4) and visible == 1


def scaled(factor: float) -> torch.Tensor:
    whole = torch.tensor([[0.0, 0.0, 640.0, 480.0]])
    return crop_and_resize(whole, round(640 * factor), round(480 * factor))


def test_views_depend_on_seed_epoch_and_row_alone(images: Path) -> None:
    index = index_images(images, images.parent / "cache")
    first, second = (TwoViewDataset(index, (96,), 200, AugmentConfig(), seed=1) for _ in range(2))
    assert torch.equal(first[3, 0].strong.image, second[3, 0].strong.image)
    assert not torch.equal(first[3, 0].strong.image, first[4, 0].strong.image)


def test_an_unreadable_image_says_so(images: Path) -> None:
    views = TwoViewDataset(index_images(images, images.parent / "cache"), (96,), 200, AugmentConfig(), 0)[0, 1]
    assert views.skipped is not None and views.skipped[0].endswith("b.png")


def test_patches_are_noise_and_the_rest_stays() -> None:
    random = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        view = View(torch.full((1, 3, 60, 80), 7, dtype=torch.uint8), torch.eye(2, 3)[None])
        changed, patches = erase(view, random)
        inside = torch.zeros(60, 80, dtype=torch.bool)
        for x1, y1, x2, y2 in patches.int().tolist():
            assert 0 <= x1 < x2 <= 80 and 0 <= y1 < y2 <= 60
            inside[y1:y2, x1:x2] = True
        assert (changed.image[0][:, ~inside] == 7).all() and (view.image == 7).all()
        assert not inside.any() or (changed.image[0][:, inside] != 7).float().mean() > 0.9
        shares.append(float(inside.float().mean()))
    assert 0.05 < np.mean(shares) < 0.35
