from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections, average_precision
from boxless.evaluation.matching import CORRECT, EXTRA, IGNORED, WRONG_CLASS, balanced_score, confusion, match
from boxless.evaluation.precision_recall import precision_recall


def scene(seed: int, classes: int = 3, objects: int = 5, detections: int = 8) -> tuple[LabelledImage, Detections]:
    """Objects on a coarse grid, so that boxes meet often, and detections near some of them."""
    random = np.random.default_rng(seed)
    corner = random.integers(0, 6, (objects, 2)) * 10.0
    boxes = np.concatenate([corner, corner + random.integers(1, 4, (objects, 2)) * 10.0], 1).astype(np.float32)
    near = boxes[random.integers(0, objects, detections)] + random.integers(-3, 4, (detections, 4)) * 2.0
    near = np.concatenate([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1)], 1).astype(np.float32)
    scores = random.permutation(np.linspace(0.1, 0.9, detections)).astype(np.float32)
    found = Detections(near, scores, random.integers(0, classes, detections))
    labels, crowd = random.integers(0, classes, objects), random.random(objects) < 0.2
    return LabelledImage(Path(f"{seed}.jpg"), seed + 1, 100, 100, boxes, labels, crowd), found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    inside = sides[0] * sides[1]
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def slow_outcomes(truth: LabelledImage, found: Detections, score: float) -> tuple[list[tuple[int, str]], set[int]]:
    """The same rules, one detection and one object at a time: (row, outcome) and the missing objects."""
    rows = sorted(
        (row for row in range(len(found.scores)) if found.scores[row] >= score), key=lambda r: -found.scores[r]
    )
    taken: dict[int, int] = {}
    for same in (True, False):
        for row in rows:
            if row in taken.values():
                continue
            best, most = None, 0.5
            for place in range(len(truth.boxes)):
                if truth.crowd[place] or place in taken or (truth.labels[place] == found.labels[row]) != same:
                    continue
                iou = overlap(found.boxes[row].astype(float), truth.boxes[place].astype(float))
                if iou >= most and (best is None or iou > most):
                    best, most = place, iou
            if best is not None:
                taken[best] = row
    outcomes = []
    for row in rows:
        place = next((place for place, taker in taken.items() if taker == row), None)
        if place is not None:
            outcomes.append((row, CORRECT if truth.labels[place] == found.labels[row] else WRONG_CLASS))
            continue
        x1, y1, x2, y2 = found.boxes[row].astype(float)
        shares = [
            max(0.0, min(x2, c[2]) - max(x1, c[0])) * max(0.0, min(y2, c[3]) - max(y1, c[1])) / ((x2 - x1) * (y2 - y1))
            for c in truth.boxes[truth.crowd].astype(float)
        ]
        outcomes.append((row, IGNORED if max(shares, default=0.0) >= 0.5 else EXTRA))
    return outcomes, {place for place in range(len(truth.boxes)) if not truth.crowd[place] and place not in taken}


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_outcomes_and_confusions_are_those_of_a_slow_matcher(seed: int) -> None:
    images, found = zip(*(scene(3 * seed + offset) for offset in range(3)), strict=True)
    data = LabelledData("here", ("a", "b", "c"), (1, 2, 3), images)
    matches = [match(image, each, 0.3) for image, each in zip(images, found, strict=True)]
    slow = [slow_outcomes(image, each, 0.3) for image, each in zip(images, found, strict=True)]
    expected = np.zeros((4, 4), int)
    for image, each, matched, (outcomes, missing) in zip(images, found, matches, slow, strict=True):
        assert list(zip(matched.kept.tolist(), matched.outcomes, strict=True)) == outcomes
        assert set(matched.missing.tolist()) == missing
        for place in missing:
            expected[image.labels[place], 3] += 1
        for (row, outcome), place in zip(outcomes, matched.objects, strict=True):
            if outcome in (CORRECT, WRONG_CLASS):
                expected[image.labels[place], each.labels[row]] += 1
            elif outcome == EXTRA:
                expected[3, each.labels[row]] += 1
    counts = confusion(data, found, matches)
    np.testing.assert_array_equal(counts, expected)
    # Every object that is no crowd is in one row, every detection that counts in one column.
    np.testing.assert_array_equal(
        counts[:3].sum(1), sum(np.bincount(image.labels[~image.crowd], minlength=3) for image in images)
    )
    ignored = sum(matched.outcomes.count(IGNORED) for matched in matches)
    assert counts[:, :3].sum() == sum(int((each.scores >= 0.3).sum()) for each in found) - ignored


def test_nothing_found_and_nothing_labelled() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    truth, found = scene(1)
    empty = LabelledImage(
        Path("a.jpg"), 1, 100, 100, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    )
    assert match(truth, nothing, 0.5).missing.tolist() == np.flatnonzero(~truth.crowd).tolist()
    assert set(match(empty, found, 0.0).outcomes) == {EXTRA} and not len(match(empty, nothing, 0.5).kept)
    data = LabelledData("here", ("a", "b", "c"), (1, 2, 3), (empty,))
    assert balanced_score(data, [nothing]) == 0.5 and balanced_score(data, [found]) == found.scores.max()


def test_curves_have_the_areas_that_ap_has() -> None:
    images, found = zip(*(scene(seed) for seed in range(30)), strict=True)
    data = LabelledData("here", ("a", "b", "c", "never"), (7, 2, 3, 1), images)  # ids that are not in order
    curves = precision_recall(data, found)
    scores = average_precision(data, found)
    np.testing.assert_allclose(curves.means.mean(1), [scores.ap50, scores.ap75], atol=1e-12)
    assert np.isnan(curves.precision[..., 3]).all() and not np.isnan(curves.precision[..., :3]).any()
    alone = LabelledData("here", ("b",), (2,), tuple(_only(image, 1) for image in images))
    of_b = [
        Detections(each.boxes[each.labels == 1], each.scores[each.labels == 1], 0 * each.labels[each.labels == 1])
        for each in found
    ]
    np.testing.assert_allclose(curves.precision[:, :, 1], precision_recall(alone, of_b).precision[:, :, 0], atol=1e-12)


def _only(image: LabelledImage, label: int) -> LabelledImage:
    rows = image.labels == label
    return LabelledImage(
        image.path, image.image_id, 100, 100, image.boxes[rows], 0 * image.labels[rows], image.crowd[rows]
    )
