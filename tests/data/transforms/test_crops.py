import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec, cut, draw_window, extended, least_scale, on_grid

NO_BOXES = np.zeros((0, 4), np.float32)


def spec(scale: tuple[float, float] | None = (0.08, 1.0), min_boxes: int = 0) -> ViewSpec:
    return ViewSpec(32, Photometric(), scale, min_boxes=min_boxes)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 10**6))
def test_window_lies_in_the_image_and_is_never_empty(width: int, height: int, seed: int) -> None:
    x1, y1, x2, y2 = draw_window(spec(), width, height, NO_BOXES, np.random.default_rng(seed))
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_areas_and_ratios_are_those_asked_for() -> None:
    random = np.random.default_rng(0)
    windows = np.array([draw_window(spec((0.2, 0.8)), 400, 400, NO_BOXES, random) for _ in range(3000)])
    w, h = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    shares, ratios = w * h / 160000, w / h
    assert shares.min() > 0.19 and shares.max() < 0.81 and shares.mean() == pytest.approx(0.5, abs=0.02)
    assert ratios.min() > 0.74 and ratios.max() < 1.35
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.01)  # log-uniform, symmetric
    assert windows[:, 0].min() == 0 and windows[:, 2].max() == 400


@given(st.integers(1, 9), st.integers(1, 9), *[st.integers(-30, 30)] * 2, *[st.integers(1, 40)] * 2)
def test_beyond_its_edges_an_image_goes_on(columns: int, rows: int, x: int, y: int, width: int, height: int) -> None:
    image = np.arange(rows * columns * 3, dtype=np.uint8).reshape(rows, columns, 3)
    places = np.ix_(np.arange(y, y + height).clip(0, rows - 1), np.arange(x, x + width).clip(0, columns - 1))
    assert np.array_equal(extended(image, x, y, width, height), image[places])


def test_whole_image_without_scale() -> None:
    assert draw_window(spec(None), 31, 47, NO_BOXES, np.random.default_rng(0)) == (0, 0, 31, 47)


def test_impossible_shapes_fall_back_to_the_centre() -> None:
    assert draw_window(spec((1.0, 1.0)), 400, 20, NO_BOXES, np.random.default_rng(0)) == (186, 0, 213, 20)
    assert draw_window(spec((1.0, 1.0)), 20, 400, NO_BOXES, np.random.default_rng(0)) == (0, 186, 20, 213)


def test_crops_are_drawn_anew_until_they_show_boxes() -> None:
    boxes = np.array([[10, 10, 50, 50], [150, 150, 190, 190]], np.float32)

    def shown(min_boxes: int) -> np.ndarray:
        random = np.random.default_rng(0)
        counts = []
        for _ in range(400):
            x1, y1, x2, y2 = draw_window(spec((0.1, 0.5), min_boxes), 200, 200, boxes, random)
            counts.append(sum(x1 < b[2] and b[0] < x2 and y1 < b[3] and b[1] < y2 for b in boxes))
        return np.array(counts)

    once = shown(0)
    none = (once < 2).mean() * (once == 0).mean() ** 5  # one draw wants both, five more want one
    assert (once == 0).mean() > 0.3 and (shown(2) == 0).mean() == pytest.approx(none, abs=0.08)


def test_cut_shows_the_window() -> None:
    y, x = np.mgrid[0:60, 0:100] + 0.5
    image = np.stack([2 * x, 2 * y, 0 * x], -1).astype(np.uint8)
    view = cut(image, (20.0, 10.0, 80.0, 50.0), 30)
    assert view.shape == (30, 30, 3) and view.dtype == np.uint8
    centres = 20 + (np.arange(30) + 0.5) * 2, 10 + (np.arange(30) + 0.5) * 40 / 30
    np.testing.assert_allclose(view[15, :, 0] / 2, centres[0], atol=0.8)
    np.testing.assert_allclose(view[:, 15, 1] / 2, centres[1], atol=0.8)


@pytest.mark.parametrize("window", [(0, 0, 90, 70), (7, 3, 20, 44), (10, 5, 42, 37), (1, 1, 2, 3)])
def test_cut_resizes_as_pillow_does(window: tuple[int, int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    expected = Image.fromarray(image).crop(window).resize((32, 32), Image.Resampling.BILINEAR)
    ours = cut(image, tuple(map(float, window)), 32)  # type: ignore[arg-type]
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 1


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([1, 2, 4, 8]), st.integers(0, 10**6))
def test_window_on_the_grid_of_a_small_image(width: int, height: int, step: int, seed: int) -> None:
    window = draw_window(spec(), width, height, NO_BOXES, np.random.default_rng(seed))
    small = -(-width // step), -(-height // step)
    x1, y1, x2, y2 = on_grid(window, step, *small)
    assert 0 <= x1 < x2 <= small[0] and 0 <= y1 < y2 <= small[1]
    if step == 1:
        assert (x1, y1, x2, y2) == window
    if min(window[2] - window[0], window[3] - window[1]) >= 2 * step:
        np.testing.assert_allclose(np.array([x1, y1, x2, y2]) * step, window, atol=step / 2)


def test_least_scale_leaves_each_view_its_pixels() -> None:
    assert least_scale([(0, 0, 400, 300), (10, 10, 90, 310)], [60, 20]) == 0.25
    assert least_scale([(0, 0, 10, 10)], [32]) == 1.0


def test_patches_have_any_shape_and_never_the_whole_side() -> None:
    spec, random = ViewSpec(32, Photometric(), least_side=8), np.random.default_rng(0)
    windows = np.array([draw_window(spec, 40, 25, NO_BOXES, random) for _ in range(2000)])
    sides = windows[:, 2:] - windows[:, :2]
    assert (sides.min(0) == (8, 8)).all() and (sides.max(0) == (32, 17)).all()
    assert windows.min() == 0 and (windows[:, 2:].max(0) == (40, 25)).all()
    np.testing.assert_allclose(sides.mean(0), (20, 12.5), atol=0.6)  # uniform, and each side on its own
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.1
    assert draw_window(spec, 1, 3, NO_BOXES, random)[2:] <= (1, 3)
