from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.data.sampler import RepeatFactorSampler, TrainingSampler, repeat_factors

SHOWN = [[0], [0, 0], [0, 1], [0, 2, 1], [], [0], [0], [0]]  # classes of each image's objects


def labelled(shown):
    images = tuple(
        LabelledImage(
            Path(f"{n}.jpg"), n, 8, 8, np.zeros((len(k), 4), np.float32), np.array(k, np.int64), np.zeros(len(k), bool)
        )
        for n, k in enumerate(shown)
    )
    return LabelledData("here", ("often", "rare", "once", "never"), (1, 2, 3, 4), images)


@pytest.mark.parametrize("threshold", [0.001, 0.5, 1.0])
def test_factors_by_the_definition(threshold):
    expected = []
    for classes in SHOWN:
        factors = [1.0]
        for k in classes:
            share = sum(k in other for other in SHOWN) / len(SHOWN)
            factors.append(max(1.0, (threshold / share) ** 0.5))
        expected.append(max(factors))
    np.testing.assert_allclose(repeat_factors(labelled(SHOWN), threshold), expected)
    if threshold == 0.5:  # by hand: `rare` is in 2 of 8 images, `once` in 1
        np.testing.assert_allclose(expected, [1, 1, 2**0.5, 2, 1, 1, 1, 1])


def order(start, total, repeats, rank=0, world=1, batch=2):
    return list(RepeatFactorSampler(np.asarray(repeats), batch, start, total, 5, rank, world))


def test_images_come_as_often_as_their_factors_say():
    factors = [1.0, 1.25, 2.0, 3.5]
    batches = order(0, 3000, factors)
    seen = Counter(row for batch in batches for _, row in batch)
    share = np.array([seen[row] for row in range(4)]) / sum(seen.values())
    np.testing.assert_allclose(share, np.array(factors) / sum(factors), atol=0.01)
    places = Counter(place for batch in batches for place in batch)
    assert max(places.values()) == 1  # no two samples of the run share their random draws
    epochs = sorted({number // 4 for batch in batches for number, _ in batch})
    per_epoch = [Counter(row for batch in batches for number, row in batch if number // 4 == epoch) for epoch in epochs]
    assert all(count[0] <= 1 and count[1] in (0, 1, 2) and count[3] <= 4 for count in per_epoch)
    assert {count[3] for count in per_epoch[:-1]} >= {3, 4}  # rounded in each epoch


@given(st.lists(st.floats(1, 4), min_size=1, max_size=7), st.integers(0, 40), st.integers(1, 3))
def test_a_run_that_goes_on_sees_what_an_undisturbed_one_sees(factors, start, batch):
    assert order(start, 40, factors, batch=batch) == order(0, 40, factors, batch=batch)[start:]


def test_processes_share_the_batches_and_without_repeats_all_is_as_it_was():
    factors = [1.0, 1.5, 2.5, 1.0, 1.0]
    for one, first, second in zip(
        order(0, 9, factors, batch=4), order(0, 9, factors, 0, 2), order(0, 9, factors, 1, 2), strict=True
    ):
        assert one == [*first, *second]
    once = list(TrainingSampler(5, 2, 3, 9, 5))
    expected = []
    for step in range(3, 9):
        rows = np.random.default_rng((5, step // 2)).permutation(5)
        expected.append([(step // 2, rows[step % 2 * 2]), (step // 2, rows[step % 2 * 2 + 1])])
    assert once == expected
