"""K boxes of each class: as many as there are up to K, the smaller draw within the larger, the rest not learned."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxless.data.annotations.shots import boxes_digest, boxes_to_learn, draw_shots, objects_per_class
from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.errors import UserError

CLASSES = ("cat", "dog", "emu")


def labelled(images):
    """Data of images that are lists of (class, crowd); every box is another one."""
    found, number = [], 0
    for row, objects in enumerate(images):
        sides = np.arange(number, number + len(objects), dtype=np.float32)
        number += len(objects)
        found.append(
            LabelledImage(
                Path(f"/data/{row}.jpg"),
                row,
                9000,
                9000,
                np.stack([sides, sides, sides + 5, sides + 9], axis=1).reshape(-1, 4),
                np.array([label for label, _ in objects], np.int64),
                np.array([crowd for _, crowd in objects], bool),
            )
        )
    return LabelledData("here", CLASSES, (1, 2, 3), tuple(found))


objects = st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=6)
sets = st.lists(objects, min_size=1, max_size=8).filter(any).map(labelled)
seeds = st.integers(0, 5)


def learned(data):
    return {(box["image_id"], box["class"], *box["box"]) for box in boxes_to_learn(data)}


@given(sets, st.integers(1, 7), seeds, st.booleans())
def test_k_boxes_of_each_class_or_all_there_are(data, shots, seed, ignore):
    chosen, there = draw_shots(data, shots, seed, ignore), objects_per_class(data)
    assert objects_per_class(chosen) == {name: min(shots, there[name]) for name in CLASSES}
    assert all(image.learned.any() for image in chosen.images)
    assert [image.image_id for image in chosen.images] == sorted(image.image_id for image in chosen.images)


@given(sets, st.integers(1, 6), seeds, st.booleans())
def test_the_larger_draw_holds_the_smaller_and_the_same_seed_repeats_it(data, shots, seed, ignore):
    few, more = (learned(draw_shots(data, count, seed, ignore)) for count in (shots, shots + 1))
    assert few <= more
    again = boxes_to_learn(draw_shots(data, shots, seed, ignore))
    assert boxes_digest(again) == boxes_digest(again[::-1]) and learned(draw_shots(data, shots, seed, ignore)) == few
    assert (boxes_digest(boxes_to_learn(draw_shots(data, shots + 1, seed, ignore))) == boxes_digest(again)) == (
        few == more
    )


@given(sets, st.integers(1, 7), seeds)
def test_no_object_is_lost_and_others_are_ignored_or_left_out(data, shots, seed):
    ignoring, plain = draw_shots(data, shots, seed, True), draw_shots(data, shots, seed, False)
    for one, other in zip(ignoring.images, plain.images, strict=True):
        whole = data.images[one.image_id]
        assert one.boxes is whole.boxes and (one.crowd == whole.crowd).all() and other.ignored is None
        assert (one.learned == other.learned).all()
        assert (one.ignored == (~one.learned & ~whole.crowd)).all() and (other.crowd == ~one.learned).all()


@given(sets, st.integers(1, 7), seeds)
def test_boxes_are_of_as_many_images_as_they_can_be(data, shots, seed):
    chosen = draw_shots(data, shots, seed, True)
    for label, name in enumerate(CLASSES):
        showing = sum(((image.labels == label) & ~image.crowd).any() for image in data.images)
        images = Counter(box["image_id"] for box in boxes_to_learn(chosen) if box["class"] == name)
        assert len(images) == min(shots, showing)
        assert max(images.values(), default=0) - min(images.values(), default=0) <= 1 or len(images) == showing


def test_seeds_draw_different_boxes():
    data = labelled([[(0, False)] * 3] * 20)
    assert len({boxes_digest(boxes_to_learn(draw_shots(data, 3, seed, True))) for seed in range(8)}) == 8


@pytest.mark.parametrize(("shots", "images"), [(0, [[(0, False)]]), (-1, [[(0, False)]]), (1, [[]])])
def test_no_shots_and_no_boxes_are_refused(shots, images):
    with pytest.raises(UserError, match=f"^shots: {shots}; "):
        draw_shots(labelled(images), shots, 0, True)
