"""Detections compared object by object."""

import numpy as np
import pytest

from boxless.interop.compared import LIMIT, difference


def found(*scores: float, shift: float = 0.0, label: int = 1) -> dict[str, np.ndarray]:
    corners = np.arange(len(scores), dtype=np.float64)[:, None] * 20 + shift
    boxes = np.concatenate([corners, corners, corners + 10, corners + 10], 1)
    return {"boxes": boxes, "scores": np.array(scores), "labels": np.full(len(scores), label)}


def test_an_order_does_not_count_and_a_shift_or_another_class_does() -> None:
    one = found(0.9, 0.5)
    turned = {key: value[::-1] for key, value in one.items()}
    assert difference([one], [turned]) == 0
    assert difference([one], [found(0.9, 0.5, shift=0.5)]) > LIMIT
    assert difference([one], [found(0.9, 0.5, label=2)]) == np.inf
    assert difference([found(0.9, 0.6, 0.5)], [found(0.9)]) > LIMIT
    assert difference([found(0.9)], [found(0.9, shift=0.5)]) > LIMIT


def test_objects_that_tie_with_the_last_kept_one_may_differ() -> None:
    assert difference([found(0.9, 0.5, 0.5)], [found(0.9, 0.5, 0.5)]) == pytest.approx(0)
    other = found(0.9, 0.5, 0.5)
    other["boxes"][1:] += 300
    assert difference([found(0.9, 0.5, 0.5)], [other]) == 0
