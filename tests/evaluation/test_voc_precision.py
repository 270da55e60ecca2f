"""VOC's AP against a slow loop in the devkit's own terms: pixels from 1, both ends in, one box after another."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections
from boxless.evaluation.voc_precision import voc_average_precision

CLASSES = ("cat", "dog", "bird")


def truth_of(images):
    """`images`: lists of (box in the devkit's pixels, class, difficult)."""
    return LabelledData(
        "here",
        CLASSES,
        (1, 2, 3),
        tuple(
            LabelledImage(
                Path(f"{n}.jpg"),
                n,
                100,
                100,
                np.array([[x1 - 1, y1 - 1, x2, y2] for (x1, y1, x2, y2), _, _ in objects], np.float32).reshape(-1, 4),
                np.array([k for _, k, _ in objects], np.int64),
                np.array([hard for _, _, hard in objects], bool),
            )
            for n, objects in enumerate(images)
        ),
    )


def detections_of(images):
    """`images`: lists of (box in the devkit's pixels, class, score)."""
    return [
        Detections(
            np.array([[x1 - 1, y1 - 1, x2, y2] for (x1, y1, x2, y2), _, _ in found], np.float32).reshape(-1, 4),
            np.array([score for _, _, score in found], np.float32),
            np.array([k for _, k, _ in found], np.int64),
        )
        for found in images
    ]


def slow_ap(truth, found, k, threshold):
    positives = sum(label == k and not hard for objects in truth for _, label, hard in objects)
    if not positives:
        return math.nan
    ranked = [(np.float32(s), n, box) for n, each in enumerate(found) for box, label, s in each if label == k]
    ranked.sort(key=lambda entry: -entry[0])  # stable
    taken, hits, misses, curve = set(), 0, 0, []
    for _, n, box in ranked:
        best, which = -math.inf, None
        for row, (other, label, _) in enumerate(truth[n]):
            if label != k:
                continue
            wide = min(box[2], other[2]) - max(box[0], other[0]) + 1
            high = min(box[3], other[3]) - max(box[1], other[1]) + 1
            inner = max(wide, 0) * max(high, 0)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            if inner / (sum(areas) - inner) > best:
                best, which = inner / (sum(areas) - inner), row
        if best > threshold and truth[n][which][2]:
            pass  # difficult: neither
        elif best > threshold and (n, which) not in taken:
            taken.add((n, which))
            hits += 1
        else:
            misses += 1
        curve.append((hits / positives, hits / max(hits + misses, np.finfo(float).eps)))
    total = 0.0
    for level in np.arange(0.0, 1.1, 0.1):
        total += max((precision for recall, precision in curve if recall >= level), default=0.0) / 11
    return total


def boxes():
    # Few sizes and places, so that overlaps tie and pass exactly through thresholds.
    corner = st.integers(1, 12)
    side = st.sampled_from([4, 5, 9, 10])
    return st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2] - 1, b[1] + b[3] - 1))


objects = st.lists(st.tuples(boxes(), st.integers(0, 2), st.booleans()), max_size=5)
found = st.lists(st.tuples(boxes(), st.integers(0, 2), st.sampled_from([0.1, 0.5, 0.5, 0.7, 0.9])), max_size=7)


@settings(max_examples=150)
@given(st.lists(st.tuples(objects, found), min_size=1, max_size=4))
def test_agrees_with_the_devkits_loop(pairs):
    truth, detected = [a for a, _ in pairs], [b for _, b in pairs]
    scores = voc_average_precision(truth_of(truth), detections_of(detected))
    table = np.array([[slow_ap(truth, detected, k, t / 100) for t in range(50, 100, 5)] for k in range(3)])
    np.testing.assert_allclose(list(scores.per_class.values()), table.mean(1), atol=1e-9)
    known = table[~np.isnan(table[:, 0])]
    if len(known):
        expected = known.mean(), known[:, 0].mean(), known[:, 5].mean()
        np.testing.assert_allclose([scores.ap, scores.ap50, scores.ap75], expected, atol=1e-9)
    else:
        assert math.isnan(scores.ap)
    assert math.isnan(scores.ap_small) and math.isnan(scores.ar100)


def test_worked_by_hand():
    cat, far = (1, 1, 10, 10), (50, 50, 59, 59)
    truth = [[(cat, 0, False), (far, 0, False), ((80, 80, 89, 89), 0, True)], [(cat, 0, False)]]
    detected = [
        [(cat, 0, 0.9), (cat, 0, 0.8), ((80, 80, 89, 89), 0, 0.85), ((1, 1, 10, 5), 1, 1.0)],
        [((1, 1, 10, 8), 0, 0.7)],  # 0.8 of the box: a hit up to a threshold of 0.75, not at 0.8 itself
    ]
    # Of 3 objects: hit (recall 1/3, precision 1), difficult, double (1/2), hit (2/3, precision 2/3).
    low = (4 * 1 + 3 * 2 / 3) / 11  # 0, .1, .2, .3 at precision 1; .4, .5, .6 at 2/3
    high = 4 / 11
    scores = voc_average_precision(truth_of(truth), detections_of(detected))
    assert scores.ap50 == pytest.approx(low) and scores.ap75 == pytest.approx(low)
    assert scores.ap == pytest.approx((6 * low + 4 * high) / 10)
    assert scores.per_class["cat"] == pytest.approx(scores.ap) and math.isnan(scores.per_class["dog"])


def test_no_detection_at_all():
    nothing = voc_average_precision(truth_of([[((1, 1, 10, 10), 2, False)]]), detections_of([[]]))
    assert nothing.ap == 0 and nothing.per_class["bird"] == 0
