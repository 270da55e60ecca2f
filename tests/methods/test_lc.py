import dataclasses
import math
from typing import Literal

import pytest
import torch
from small_methods import built, run
from torch import Tensor

from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.byol import BYOLConfig
from boxless.methods.dino import DINOConfig
from boxless.methods.lc import LCBYOLConfig, LCDINOConfig, LocalConfig, places

LOCAL = LocalConfig(hidden=16, output=8)
WITH_BYOL = LCBYOLConfig(byol=BYOLConfig(size=96, hidden=16, output=8), local=LOCAL)
DINO = DINOConfig(size=96, local_size=32, local_crops=1, hidden=16, output=8, prototypes=12)
WITH_DINO = LCDINOConfig(dino=DINO, local=LOCAL)

# Of 100 x 80 px sources: a window, and whether the view shows it mirrored.
WHOLE = ((0.0, 0.0, 100.0, 80.0), False)
CROP = ((35.0, 5.0, 95.0, 45.0), True)
OTHER = ((0.0, 20.0, 50.0, 80.0), False)


Window = tuple[tuple[float, ...], bool]


def view(window: Window, size: int = 96, count: int = 2, seed: int = 1) -> View:
    """Random pixels that come from a window of the source."""
    image = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    edges, mirrored = window
    maps = crop_and_resize(torch.tensor([edges]).expand(count, 4), size, size)
    shown = View(image, maps)
    return shown.mirrored(torch.ones(count, dtype=torch.bool)) if mirrored else shown


def of_each_cell(f: Tensor, g: Tensor, kind: str) -> list[list[float]]:
    """The loss that one cell f (C,) has with each cell of a map g (C, h, w): eq. 3, or BYOL's distance."""
    rows, columns = range(g.shape[1]), range(g.shape[2])
    cosines = [[float(f @ g[:, r, c] / f.norm() / g[:, r, c].norm()) for c in columns] for r in rows]
    if kind == "mse":
        return [[2 - 2 * value for value in row] for row in cosines]
    total = sum(math.exp(value / 0.2) for row in cosines for value in row)
    return [[-math.log(math.exp(value / 0.2) / total) for value in row] for row in cosines]


def between(losses: list[list[float]], u: float, v: float) -> float:
    """Bilinear between the cells' centres, which lie at whole numbers; the outermost ones reach to the border."""
    rows, columns = len(losses), len(losses[0])
    u, v = min(max(u, 0), columns - 1), min(max(v, 0), rows - 1)
    weight = {(r, c): max(0, 1 - abs(u - c)) * max(0, 1 - abs(v - r)) for r in range(rows) for c in range(columns)}
    return sum(share * losses[r][c] for (r, c), share in weight.items())


def local_by_hand(f_maps: Tensor, g_maps: Tensor, window: Window, kind: str = "contrastive") -> float:
    """L_LC of eq. 4: the whole image's cells f in a crop's cells g, from the window's numbers alone."""
    (left, top, right, bottom), mirrored = window
    rows, columns = g_maps.shape[2:]
    terms = []
    for f_map, g_map in zip(f_maps.double(), g_maps.double(), strict=True):
        for i in range(rows):
            for j in range(columns):
                x = ((j + 0.5) / columns * 100 - left) / (right - left)
                y = ((i + 0.5) / rows * 80 - top) / (bottom - top)
                x = 1 - x if mirrored else x
                if 0 <= x < 1 and 0 <= y < 1:
                    losses = of_each_cell(f_map[:, i, j], g_map, kind)
                    terms.append(between(losses, x * columns - 0.5, y * rows - 0.5))
    assert terms and len(terms) < rows * columns * len(f_maps), "some cells are seen and some are not"
    return sum(terms) / len(terms)


def test_places_worked_example() -> None:
    """A 64 px image, a crop 20..64 x 0..44 resized to 64 and flipped: of four centres one survives."""
    whole = View(torch.zeros(1, 3, 64, 64), crop_and_resize(torch.tensor([[0.0, 0, 64, 64]]), 64, 64))
    crop = View(torch.zeros(1, 3, 64, 64), crop_and_resize(torch.tensor([[20.0, 0, 64, 44]]), 64, 64))
    points = places(whole, crop.mirrored(torch.tensor([True])), 2, 2)
    torch.testing.assert_close(points[0, 0, 1], torch.tensor([1 - 28 / 44, 16 / 44]))
    assert points.isnan().all(-1).tolist() == [[[True, False], [True, True]]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["contrastive", "mse"])
def test_loss_on_byol_is_the_papers(kind: Literal["contrastive", "mse"]) -> None:
    method = built(dataclasses.replace(WITH_BYOL, alpha=0.3, local=dataclasses.replace(LOCAL, kind=kind))).eval()
    whole, crop = view(WHOLE), view(CROP, seed=2)
    f = method.local.target_projector(method.byol.target_encoder(whole.image)["3"])
    g = method.local.projector(method.byol.encoder(crop.image)["3"])
    assert f.shape == g.shape == (2, 8, 3, 3)
    local = local_by_hand(f, g, CROP, kind)
    both = run(method.byol, (whole, crop)).loss.item()
    result = run(method, (whole, crop))
    assert result.terms["local"].item() == pytest.approx(local, abs=1e-4)
    assert result.terms["global"].item() == pytest.approx(both, abs=1e-5)
    assert result.loss.item() == pytest.approx(0.7 * both + 0.3 * local, abs=1e-4)  # eq. 5


@torch.no_grad()
def test_two_crops_leave_the_whole_image_to_the_target() -> None:
    method = built(dataclasses.replace(WITH_BYOL, crops=2)).eval()
    whole, first, second = view(WHOLE), view(CROP, seed=2), view(OTHER, seed=3)
    f = method.local.target_projector(method.byol.target_encoder(whole.image)["3"])
    g = [method.local.projector(method.byol.encoder(crop.image)["3"]) for crop in (first, second)]
    result = run(method, (whole, first, second))
    local = (local_by_hand(f, g[0], CROP) + local_by_hand(f, g[1], OTHER)) / 2
    assert result.terms["local"].item() == pytest.approx(local, abs=1e-4)
    assert result.terms["global"].item() == pytest.approx(run(method.byol, (first, second)).loss.item(), abs=1e-5)


@torch.no_grad()
def test_loss_on_dino_adds_both_global_crops() -> None:
    method = built(WITH_DINO).eval()
    whole, first, second, small = view(WHOLE), view(CROP, seed=2), view(OTHER, seed=3), view(CROP, 32, seed=4)
    f = method.local.target_projector(method.dino.target_encoder(whole.image)["3"])
    g = [method.local.projector(method.dino.encoder(crop.image)["3"]) for crop in (first, second)]
    result = run(method, (whole, first, second, small))
    local = (local_by_hand(f, g[0], CROP) + local_by_hand(f, g[1], OTHER)) / 2
    alone = run(method.dino, (first, second, small)).loss.item()
    assert result.terms["local"].item() == pytest.approx(local, abs=1e-4)
    assert result.loss.item() == pytest.approx(0.9 * alone + 0.1 * local, abs=1e-4)


def test_dino_sees_its_own_crops_alone() -> None:
    """Norms and centre are those of DINO without the local term; the whole image's pixels reach neither."""
    crops = view(CROP, seed=2), view(OTHER, seed=3), view(CROP, 32, seed=4)
    method, alone = built(WITH_DINO), built(WITH_DINO)
    together, by_itself = run(method, (view(WHOLE), *crops)), run(alone.dino, crops)
    torch.testing.assert_close(together.terms["global"], by_itself.loss.detach())
    for each in (method, alone):
        each.dino.after_step(0, 10)
    torch.testing.assert_close(method.dino.center, alone.dino.center)


def test_gradient_reaches_the_local_projector_and_nothing_of_the_target() -> None:
    method = built(WITH_BYOL)
    whole, crop = view(WHOLE), view(CROP, seed=2)
    maps = [torch.randn(2, 512, 3, 3, requires_grad=True) for _ in range(2)]
    method.local(maps[0], whole, maps[1], crop).backward()
    assert maps[0].grad is None and maps[1].grad.any()
    assert all(parameter.grad.any() for parameter in method.local.projector[::3].parameters() if parameter.ndim > 1)
    assert all(parameter.grad is None for parameter in method.local.target_projector.parameters())


def test_views_without_a_common_place_teach_nothing() -> None:
    method = built(WITH_BYOL)
    maps = [torch.randn(2, 512, 3, 3, requires_grad=True) for _ in range(2)]
    left, right = view(((0.0, 0.0, 40.0, 80.0), False)), view(((60.0, 0.0, 100.0, 80.0), False))
    loss = method.local(maps[0], left, maps[1], right)
    loss.backward()
    assert loss.item() == 0 and not maps[1].grad.any()
