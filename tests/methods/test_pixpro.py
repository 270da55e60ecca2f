import math
from dataclasses import replace

import pytest
import torch
from small_methods import built, run
from torch import Tensor

from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.pixpro import PixPro, PixProConfig, _places

CONFIG = PixProConfig(hidden=16, output=8)
FIRST = [[0.0, 0, 300, 200], [20.0, 10, 140, 150], [0.0, 0, 90, 90]]
SECOND = [[30.0, 20, 230, 190], [80.0, 40, 260, 130], [150.0, 100, 300, 200]]  # the last two do not overlap
MIRRORED = [True, False, True]


def views(first: list[list[float]] = FIRST, second: list[list[float]] = SECOND, size: int = 96) -> tuple[View, View]:
    """Random pixels of two windows per source; some second views mirrored."""
    images = torch.randn(2, len(first), 3, size, size, generator=torch.Generator().manual_seed(1))
    one, two = (
        View(image, crop_and_resize(torch.tensor(windows), size, size))
        for image, windows in zip(images, (first, second), strict=True)
    )
    return one, two.mirrored(torch.tensor(MIRRORED[: len(first)]))


def centre(window: list[float], mirrored: bool, x: int, y: int) -> tuple[float, float]:
    """Of a cell of a 3 x 3 map, source px, by hand."""
    left, top, right, bottom = window
    width, height = (right - left) / 3, (bottom - top) / 3
    return (right - (x + 0.5) * width if mirrored else left + (x + 0.5) * width), top + (y + 0.5) * height


def propagated(method: PixPro, cells: list[Tensor]) -> list[Tensor]:
    """Eqs. 3 and 4, cell by cell."""
    value = method.propagation.value
    transformed = [value.weight[:, :, 0, 0].double() @ x + value.bias.double() for x in cells]
    if method.config.normalize_values:
        transformed = [g / g.norm() for g in transformed]
    sums = []
    for x in cells:
        likeness = [max(float(x @ other / (x.norm() * other.norm())), 0.0) ** 2 for other in cells]
        sums.append(sum(s * g for s, g in zip(likeness, transformed, strict=True)))
    return sums


@torch.no_grad()
def slow_loss(method: PixPro, pair: tuple[View, ...]) -> float:
    total = 0.0
    places = [(x, y) for y in range(3) for x in range(3)]
    for i, windows in enumerate(zip(FIRST, SECOND, strict=True)):
        online, target, at = [], [], []
        for view, window, mirrored in zip(pair, windows, (False, MIRRORED[i]), strict=True):
            image = view.image[i : i + 1]
            z = method.projector(method.encoder(image)["3"])[0].double()
            online.append(propagated(method, [z[:, y, x] for x, y in places]))
            z = method.target_projector(method.target_encoder(image)["3"])[0].double()
            target.append([z[:, y, x] for x, y in places])
            at.append([centre(window, mirrored, x, y) for x, y in places])
        unit = max(math.hypot((w[2] - w[0]) / 3, (w[3] - w[1]) / 3) for w in windows)
        for a, b in ((0, 1), (1, 0)):
            cosines = [
                float(y @ t / (y.norm() * t.norm()))
                for y, here in zip(online[a], at[a], strict=True)
                for t, there in zip(target[b], at[b], strict=True)
                if math.dist(here, there) / unit < 0.7
            ]
            total += -2 * sum(cosines) / max(len(cosines), 1) / len(FIRST)
    return total


@pytest.mark.parametrize("normalize_values", [False, True])
def test_loss_is_the_papers(normalize_values: bool) -> None:
    method, pair = built(replace(CONFIG, normalize_values=normalize_values)).eval(), views()
    output = run(method, pair)
    assert output.loss.item() == pytest.approx(slow_loss(method, pair), abs=1e-4)
    assert output.online.shape == output.target.shape == (3, 8)


@torch.no_grad()
def test_cells_take_over_nothing_from_their_opposites() -> None:
    method = built(CONFIG)
    x = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(1))  # half of all cosines are negative
    expected = torch.stack(propagated(method, list(x[0].double().flatten(1).T)), 1)
    torch.testing.assert_close(method.propagation(x)[0].flatten(1).double(), expected, atol=1e-5, rtol=0)


def test_views_are_interchangeable_and_source_scale_does_not_matter() -> None:
    method, pair = built(CONFIG).eval(), views()
    expected = run(method, pair).loss.item()
    assert run(method, pair[::-1]).loss.item() == pytest.approx(expected, abs=1e-5)
    doubled = tuple(View(v.image, v.from_source * torch.tensor([0.5, 0.5, 1])) for v in pair)
    assert run(method, doubled).loss.item() == pytest.approx(expected, abs=1e-5)


def test_views_without_overlap_teach_nothing() -> None:
    method = built(CONFIG)
    output = run(method, views(FIRST[2:] * 2, SECOND[2:] * 2))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters() if p.requires_grad)


def test_places_are_exact_in_mixed_precision_and_for_one_cell() -> None:
    view = views()[1]
    centres, diagonal = _places(view, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = _places(view, 3, 3)
    assert torch.equal(again[0], centres) and torch.equal(again[1], diagonal)
    middle, whole = _places(view, 1, 1)
    for window, point, length in zip(SECOND, middle[:, 0, 0], whole, strict=True):
        assert point.tolist() == pytest.approx([(window[0] + window[2]) / 2, (window[1] + window[3]) / 2], abs=1e-3)
        assert length.item() == pytest.approx(math.dist(window[:2], window[2:]), abs=1e-3)
