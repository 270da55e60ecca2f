import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boxless.errors import UserError
from boxless.proposals.baselines import Grid, RandomBoxes, grid_boxes, random_boxes
from boxless.proposals.limits import BoxLimits, fits, keep_fitting

SIDES = st.integers(8, 900)
LIMITS = st.builds(BoxLimits, min_side=st.sampled_from([0.0, 32.0]))


def fits_slowly(box, width, height, limits):
    x1, y1, x2, y2 = map(float, box)
    w, h = x2 - x1, y2 - y1
    share = math.sqrt(w * h) / math.sqrt(width * height)
    side = min(limits.min_side, min(width, height) / 4)
    shape = w > 0 and h > 0 and limits.aspect[0] * h <= w <= limits.aspect[1] * h
    return shape, limits.share[0] <= share <= limits.share[1], w > 0 and h > 0 and w >= side and h >= side


@st.composite
def images_with_boxes(draw):
    width, height = draw(SIDES), draw(SIDES)
    unit = draw(arrays(np.float64, (draw(st.integers(0, 12)), 2, 2), elements=st.floats(0, 1)))
    unit.sort(axis=1)
    return (unit * [width, height]).reshape(-1, 4).astype(np.float32), width, height


@given(images_with_boxes(), LIMITS)
def test_limits_agree_with_a_slow_loop(case, limits):
    boxes, width, height = case
    slow = [fits_slowly(box, width, height, limits) for box in boxes]
    assert fits(boxes, width, height, limits).tolist() == [all(tests) for tests in slow]

    ladder = [
        [box for box, (shape, share, side) in zip(boxes, slow, strict=True) if shape and share and side],
        [box for box, (shape, _, side) in zip(boxes, slow, strict=True) if shape and side],
        [box for box, (_, _, side) in zip(boxes, slow, strict=True) if side],
        [[0, 0, width, height]],
    ]
    step = next(number for number, kept in enumerate(ladder) if kept)
    kept, fallback = keep_fitting(boxes, width, height, limits)
    assert fallback == step
    np.testing.assert_array_equal(kept, np.array(ladder[step], np.float32))


@pytest.mark.parametrize(
    ("box", "step"),
    [
        ([0, 0, 200, 150], 0),
        ([0, 0, 500, 375], 1),  # too large a share, but a fair shape
        ([0, 0, 500, 40], 2),  # a strip
        ([0, 0, 500, 10], 3),  # too thin for anything
    ],
)
def test_each_step_back_in_a_500_x_375_image(box, step):
    kept, fallback = keep_fitting(np.array([box], np.float32), 500, 375, BoxLimits())
    assert fallback == step
    assert kept.tolist() == [box if step < 3 else [0, 0, 500, 375]]


def test_the_least_side_gives_way_in_small_images():
    box = np.array([[10, 10, 40, 38]], np.float32)  # 30 x 28 px: share 0.302 of 96 x 96
    assert fits(box, 96, 96, BoxLimits()).all()
    assert not fits(box, 128, 128, BoxLimits(share=(0, 1))).any()


def test_limits_must_be_ordered():
    with pytest.raises(UserError, match="share"):
        BoxLimits(share=(0.8, 0.3))


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_random_boxes_keep_the_limits_inside_the_image(width, height, seed):
    boxes = random_boxes(width, height, 16, seed)
    assert len(boxes) == 16 or max(width, height) > 3 * min(width, height)
    assert fits(boxes, width, height, BoxLimits()).all()
    assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
    np.testing.assert_array_equal(boxes, random_boxes(width, height, 16, seed))


def test_random_boxes_differ_by_image_and_seed():
    image = np.zeros((100, 120, 3), np.uint8)
    drawn = [RandomBoxes(seed=s).propose(image, key)[0].tolist() for s, key in ((0, "a"), (0, "b"), (1, "a"), (0, "a"))]
    assert drawn[0] == drawn[3] and drawn[0] != drawn[1] and drawn[0] != drawn[2]


@given(SIDES, SIDES)
def test_grid_boxes_are_inside_and_of_allowed_size(width, height):
    boxes = grid_boxes(width, height).astype(np.float64)
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    share = np.sqrt(w * h / (width * height))
    assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
    assert ((share > 0.2999) & (share < 0.8001) & (w < 2.001 * h) & (h < 2.001 * w)).all()
    if max(width, height) <= 1.5 * min(width, height):  # every pixel lies in some box
        covered = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in boxes:
            covered[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = True
        assert covered.all()


def test_a_ribbon_of_an_image_falls_back_to_itself():
    ribbon = np.zeros((8, 900, 3), np.uint8)
    for method in (Grid(), RandomBoxes()):
        boxes, fallback = method.propose(ribbon, "ribbon")
        assert fallback == 3 and boxes.tolist() == [[0, 0, 900, 8]]
