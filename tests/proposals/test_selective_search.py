import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxless.data.annotations.read import read_labels
from boxless.data.images import decode
from boxless.errors import UserError
from boxless.proposals.limits import fits
from boxless.proposals.recall import recall
from boxless.proposals.selective_search import PRESETS, SelectiveSearch, regions, selective_search


@pytest.fixture(scope="module")
def photographs(shared_data):
    labels = read_labels(shared_data / "coco256" / "annotations" / "instances_val.json")
    return [(decode(image.path), image.boxes[~image.crowd]) for image in labels.images[:6]]


def test_finds_painted_rectangles_where_they_are():
    image = np.full((120, 200, 3), 40, np.uint8)
    image[20:80, 30:110] = (220, 60, 60)
    image[60:110, 130:180] = (40, 90, 230)
    found = regions(image, SelectiveSearch(max_side=None))
    for box in ([30, 20, 110, 80], [130, 60, 180, 110], [0, 0, 200, 120]):
        assert np.abs(found - box).max(1).min() <= 2, box  # the blur moves edges by a pixel or two


def test_boxes_of_a_shrunken_image_are_in_source_pixels():
    image = np.full((300, 501, 3), 30, np.uint8)
    image[60:180, 100:300] = 200
    found = regions(image, SelectiveSearch(max_side=100))
    assert np.abs(found - [100, 60, 300, 180]).max(1).min() <= 10  # two pixels of the shrunken image
    assert found.max(0).tolist() == [*found.max(0)[:2], 501, 300]


def test_depends_on_image_and_settings_alone(photographs):
    image, _ = photographs[0]
    first = selective_search(image)
    cv2.setRNGSeed(7)
    selective_search(photographs[1][0])
    np.testing.assert_array_equal(first, selective_search(image.copy()))
    assert len(np.unique(first, axis=0)) == len(first)


def test_presets_keep_the_limits(photographs):
    image, _ = photographs[2]
    for settings_ in (
        PRESETS["fast"],
        SelectiveSearch(500, 0.9, 10, ("hsv",), 200),
        SelectiveSearch(300, max_side=200),
    ):
        boxes, fallback = settings_.propose(image, "")
        assert fallback == 0 and len(boxes) >= 5
        assert fits(boxes, image.shape[1], image.shape[0], settings_.limits).all()


def test_covers_most_objects(photographs):
    """0.70 was measured on 48 images; half of that on these few would mean that something is broken."""
    pairs = [(regions(image, PRESETS["fast"]), objects) for image, objects in photographs]
    assert recall(pairs).shares["all"] > 0.5


@settings(max_examples=15)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 9), st.booleans())
def test_any_image_gets_a_box(width, height, seed, flat):
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), seed, np.uint8) if flat else rng.integers(0, 256, (height, width, 3), np.uint8)
    boxes = selective_search(image)
    assert len(boxes) and boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all() and (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize("wrong", [{"colours": ("cmyk",)}, {"colours": ()}, {"max_side": -1}, {"scale": 0.0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SelectiveSearch(**wrong)
