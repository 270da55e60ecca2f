"""Maps invert and compose; boxes, jitter and SoCo's level rule agree with worked numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from boxless.geometry.affine import compose, crop_and_resize, identity, invert, mirror, transform_points
from boxless.geometry.boxes import area, assign_level, choose, jitter, transform_boxes
from boxless.geometry.view import View

coordinate = st.floats(0, 500)
extent = st.floats(5, 400)


@st.composite
def crops(draw):
    x, y = draw(coordinate), draw(coordinate)
    window = torch.tensor([[x, y, x + draw(extent), y + draw(extent)]], dtype=torch.float64)
    flipped = torch.tensor([draw(st.booleans())])
    size = draw(st.integers(8, 300))
    return compose(mirror(size, flipped).double(), crop_and_resize(window, size, size)), window, size


@given(crops(), st.tuples(coordinate, coordinate))
def test_maps_invert_and_send_the_window_to_the_view(crop, point):
    forward, window, size = crop
    points = torch.tensor([[point]], dtype=torch.float64)
    assert_close(transform_points(invert(forward), transform_points(forward, points)), points, atol=1e-6, rtol=1e-6)
    assert_close(
        transform_boxes(forward, window[:, None]),
        torch.tensor([[[0, 0, size, size]]], dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )
    assert_close(compose(invert(forward), forward), identity(1).double(), atol=1e-6, rtol=0)


def test_resized_and_mirrored_views_agree_with_their_warped_coordinate_images():
    """An image whose channels are its own coordinates shows where each pixel of a view came from."""
    size = 64
    coordinates = torch.arange(size) + 0.5
    image = torch.stack(
        [coordinates.expand(size, size), coordinates[:, None].expand(size, size), torch.zeros(size, size)]
    )
    view = View(image.expand(2, 3, size, size), identity(2)).resized(16).mirrored(torch.tensor([False, True]))
    centres = view.cell_centres(16, 16)  # (B, 16, 16, 2)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    assert_close(view.image.permute(0, 2, 3, 1)[..., :2][inside], centres[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("grid", "size"), [(3, 8), (3, 10), (2, 5)])
def test_patches_are_views_of_their_own_cells(grid, size):
    height, width = 30, 36
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    number = torch.tensor([0.0, 1.0])[:, None, None].expand(2, height, width)
    whole = View(torch.stack([x.expand(2, -1, -1), y.expand(2, -1, -1), number], 1), identity(2))
    view = whole.mirrored(torch.tensor([False, True]))  # its pixels tell the source px that they show
    patches = view.patches(grid, size, torch.Generator().manual_seed(0))
    assert patches.image.shape == (2 * grid**2, 3, size, size)
    assert_close(patches.cell_centres(size, size), patches.image.permute(0, 2, 3, 1)[..., :2])
    own = patches.image[:, 2].unflatten(0, (2, grid, grid))
    assert (own[0] == 0).all() and (own[1] == 1).all()
    left, top = (patches.image[:, axis].flatten(1).amin(1).unflatten(0, (2, grid, grid)) - 0.5 for axis in (0, 1))
    left[1] = left[1].flip(-1)  # of the mirrored image, cells are counted from the right
    for found, edge in ((left, width), (top.transpose(1, 2), height)):
        start = torch.arange(grid) * edge // grid
        assert (found >= start).all() and (found + size <= start + edge // grid).all()
    assert (size == height // grid) == bool((top.transpose(1, 2) == torch.arange(grid) * height // grid).all())


def test_worked_example_of_soco():
    """facts, SoCo: image 500 x 375, proposal (100, 80, 150, 120) as x, y, w, h; crop left 150, top 40, 320 x 300."""
    box = torch.tensor([[[100.0, 80, 250, 200]]])

    def view(window, size):
        return View(torch.zeros(1, 3, size, size), crop_and_resize(torch.tensor([window]), size, size))

    whole, share = view([0.0, 0, 500, 375], 224).boxes(box)
    assert_close(whole / 224, torch.tensor([[[0.2, 0.2133, 0.5, 0.5333]]]), atol=1e-3, rtol=0)
    assert share.item() == pytest.approx(1)
    # The official boxes end one pixel earlier; at that box the level rule gives its published numbers.
    official = torch.tensor([[100.0, 80, 249, 199]])
    integers = torch.tensor([0.2, 0.2133, 0.498, 0.5307]) * 224
    assert integers.trunc().tolist() == [44, 47, 111, 118]
    for window, size, level in (
        ([0.0, 0, 500, 375], 224, 3),
        ([150.0, 40, 470, 340], 224, 3),
        ([150.0, 40, 470, 340], 112, 2),
        ([150.0, 40, 470, 340], 192, 3),
    ):
        assert assign_level(view(window, size).boxes(official[None])[0]).item() == level
    cropped, share = view([150.0, 40, 470, 340], 224).boxes(box)
    assert_close(cropped / 224, torch.tensor([[[0, 0.1333, 0.3125, 0.5333]]]), atol=1e-3, rtol=0)
    assert share.item() == pytest.approx(100 / 150)


@pytest.mark.parametrize(
    ("side", "level"), [(1, 2), (47, 2), (48, 3), (95, 3), (96, 4), (191, 4), (192, 5), (223, 5), (400, 5)]
)
def test_levels_change_where_the_paper_says(side, level):
    """Inclusive corners: a box from 0 to 47 measures 48 px, the largest of P2."""
    assert assign_level(torch.tensor([0.0, 0, side, side])).item() == level


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 0.4))
def test_jitter_stays_within_its_amount(seed, amount):
    boxes = torch.tensor([10.0, 20, 60, 100]).expand(200, 4)
    size = torch.tensor([50.0, 80.0])
    moved = jitter(boxes, amount, 0.5, torch.Generator().manual_seed(seed))
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    assert ((centres - torch.tensor([35.0, 60.0])).abs() <= amount * size + 1e-4).all()
    assert (((moved[:, 2:] - moved[:, :2]) / size - 1).abs() <= amount + 1e-5).all()
    if amount > 0.01:
        assert 0.3 < (moved != boxes).any(-1).float().mean() < 0.7


@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(1, 6))
def test_choice_is_without_replacement_and_only_of_what_is_valid(seed, available, count):
    valid = torch.arange(12) < available
    indices, chosen = choose(valid[None], count, torch.Generator().manual_seed(seed))
    picked = indices[chosen].tolist()
    assert len(picked) == min(available, count) == len(set(picked))
    assert all(valid[index] for index in picked)


def test_a_box_outside_the_view_is_not_visible():
    view = View(torch.zeros(1, 3, 32, 32), crop_and_resize(torch.tensor([[100.0, 100, 200, 200]]), 32, 32))
    boxes, share = view.boxes(torch.tensor([[[0.0, 0, 90, 90], [150, 150, 250, 250]]]))
    assert share[0].tolist() == pytest.approx([0, 0.25])
    assert area(boxes)[0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_keep_their_precision_inside_autocast(dtype: torch.dtype) -> None:
    forward = crop_and_resize(torch.tensor([[13.3, 7.7, 613.3, 457.7]]), 224, 224)
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 600
    with torch.autocast("cpu", dtype):
        moved = transform_points(compose(invert(forward), forward), points)
        back = transform_points(invert(forward), transform_points(forward, points))
    assert_close(moved, points, atol=1e-3, rtol=0)
    assert_close(back, points, atol=1e-3, rtol=0)
