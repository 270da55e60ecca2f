import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from boxless.data.annotations.read import LabelledData, LabelledImage, read_labels
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, average_precision, coco_results, masks_to_rle

Box = Sequence[float]


def image(number: int | str, objects: Sequence[tuple[Box, int, bool]], masks: tuple | None = None) -> LabelledImage:
    boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label, _ in objects], np.int64)
    crowd = np.array([crowd for _, _, crowd in objects], bool)
    return LabelledImage(Path(f"{number}.jpg"), number, 200, 200, boxes, labels, crowd, masks)


def data(*images: LabelledImage, classes: int = 1, ids: Sequence[int] | None = None) -> LabelledData:
    ids = ids or range(1, classes + 1)
    return LabelledData("made by hand", tuple(f"class {k}" for k in range(len(ids))), tuple(ids), images)


def found(*objects: tuple[Box, float, int], masks: list | None = None) -> Detections:
    return Detections(
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in objects], np.float32),
        np.array([label for _, _, label in objects], np.int64),
        masks,
    )


A, B, AWAY = (0, 0, 100, 100), (100, 100, 200, 200), (150, 0, 190, 40)
ONE = data(image(1, [(A, 0, False)]))
TWO = data(image(1, [(A, 0, False), (B, 0, False)]))


@pytest.mark.parametrize(
    ("truth", "detections", "ap"),
    [
        pytest.param(ONE, found((A, 0.9, 0), (AWAY, 0.8, 0)), 1.0, id="false alarm below the hit costs nothing"),
        pytest.param(ONE, found((AWAY, 0.9, 0), (A, 0.8, 0)), 0.5, id="false alarm above the hit halves precision"),
        pytest.param(TWO, found((A, 0.9, 0)), 51 / 101, id="recall 0 to 0.50 is 51 of 101 points"),
        pytest.param(TWO, found((A, 0.9, 0), (AWAY, 0.8, 0), (B, 0.7, 0)), (51 + 50 * 2 / 3) / 101, id="both found"),
        pytest.param(ONE, found((A, 0.9, 0), (A, 0.8, 0)), 1.0, id="double below"),
        pytest.param(ONE, found(((0, 0, 72, 100), 0.9, 0)), 0.5, id="IoU 0.72 passes 5 of 10 thresholds"),
        pytest.param(ONE, found(), 0.0, id="nothing found"),
    ],
)
def test_worked_examples(truth: LabelledData, detections: Detections, ap: float) -> None:
    assert average_precision(truth, [detections]).ap == pytest.approx(ap, abs=1e-9)


def test_thresholds_sizes_and_names() -> None:
    scores = average_precision(ONE, [found(((0, 0, 72, 100), 0.9, 0))])
    assert (scores.ap50, scores.ap75, scores.ap_large, scores.ar100) == pytest.approx((1, 0, 0.5, 0.5))
    assert math.isnan(scores.ap_small) and math.isnan(scores.ap_medium)
    assert list(scores.as_dict()) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]


def test_classes_without_truth_stay_out_of_the_mean() -> None:
    truth = data(image(1, [(A, 0, False)]), classes=2)
    scores = average_precision(truth, [found((A, 0.9, 0), (B, 0.9, 1))])
    assert scores.ap == 1 and scores.per_class["class 0"] == 1 and math.isnan(scores.per_class["class 1"])


def test_no_truth_at_all_is_nan() -> None:
    assert math.isnan(average_precision(data(image(1, [])), [found((A, 0.9, 0))]).ap)


def test_crowd_counts_neither_for_nor_against() -> None:
    truth = data(image(1, [(A, 0, False), (B, 0, True)]))
    inside = (110, 110, 150, 150)
    assert average_precision(truth, [found((inside, 0.9, 0), (B, 0.8, 0), (A, 0.7, 0))]).ap == 1
    assert average_precision(truth, [found((inside, 0.9, 0))]).ap == 0


def test_ids_need_be_neither_sorted_nor_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    truth = data(image("b", [(A, 0, False)]), image("a", [(A, 1, False)]), ids=(7, 3))
    detections = [found((A, 0.9, 0)), found((AWAY, 0.9, 1))]
    assert average_precision(truth, detections).per_class == {"class 0": 1, "class 1": 0}
    results = coco_results(truth, detections)
    assert [(result["image_id"], result["category_id"]) for result in results] == [(1, 7), (2, 3)]
    assert results[1]["bbox"] == [150, 0, 40, 40]
    json.dumps(results)
    assert capsys.readouterr() == ("", "")


def test_masks_are_scored_by_their_pixels() -> None:
    left, right = np.zeros((2, 200, 200), bool)
    left[:100, :50], right[:100, 50:100] = True, True
    truth = data(image(1, [(A, 0, False)], masks=(masks_to_rle(left[None])[0],)))
    hit = found((A, 0.9, 0), masks=masks_to_rle(left[None]))
    miss = found((A, 0.9, 0), masks=masks_to_rle(right[None]))
    assert [average_precision(truth, [d], "segm").ap for d in (hit, miss)] == [1, 0]
    assert [average_precision(truth, [d], "bbox").ap for d in (hit, miss)] == [1, 1]


def test_scoring_masks_needs_masks() -> None:
    with pytest.raises(UserError, match="found boxes only"):
        average_precision(ONE, [found((A, 0.9, 0))], "segm")
    truth = data(image(1, [(A, 0, False)], masks=([[0.0, 0.0, 100.0, 0.0, 100.0, 100.0, 0.0, 100.0]],)))
    with pytest.raises(UserError, match="mask for every detection"):
        average_precision(truth, [found((A, 0.9, 0))], "segm")


def test_masks_survive_encoding() -> None:
    masks = np.random.default_rng(0).random((3, 17, 23)) < 0.4
    for mask, rle in zip(masks, json.loads(json.dumps(masks_to_rle(masks))), strict=True):
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.segmToRle(rle, 23, 17)), mask)
    assert masks_to_rle(masks[:0]) == []


def test_real_labels_given_back_score_one(shared_data: Path) -> None:
    truth = read_labels(shared_data / "coco256" / "annotations" / "instances_val.json", role="val")
    rng = np.random.default_rng(0)
    detections = []
    for each in truth.images:
        rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in each.boxes.astype(float).tolist()]
        shapes = [mask or ring for mask, ring in zip(each.masks or rings, rings, strict=True)]
        rles = [coco_mask.segmToRle(shape, each.width, each.height) for shape in shapes]
        order = rng.permutation(len(rles))
        scores = rng.random(len(rles), dtype=np.float32)
        detections.append(Detections(each.boxes[order], scores, each.labels[order], [rles[i] for i in order]))
    for kind in ("bbox", "segm"):
        scores = average_precision(truth, detections, kind)
        assert set(scores.as_dict().values()) == {1.0}


# A slow restatement of COCO's rules in plain float64 loops.


def slow_iou(box: Box, truth: Box, crowd: bool) -> float:
    width = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
    height = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
    area, other = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth))
    return width * height / (area if crowd else area + other - width * height)


def slow_hits(objects: list, boxes: list, threshold: float) -> list[tuple[float, bool]]:
    """(score, is a hit) of each detection of one image and class that counts."""
    objects = sorted(objects, key=lambda each: each[1])  # crowds last
    taken: set[int] = set()
    outcome = []
    for box, score in sorted(boxes, key=lambda each: -each[1]):
        best, chosen = threshold, None
        for index, (truth, crowd) in enumerate(objects):
            if index in taken and not crowd:
                continue
            if crowd and chosen is not None and not objects[chosen][1]:
                break
            overlap = slow_iou(box, truth, crowd)
            if overlap >= best:
                best, chosen = overlap, index
        if chosen is None:
            outcome.append((score, False))
        elif not objects[chosen][1]:
            taken.add(chosen)
            outcome.append((score, True))
    return outcome


def slow_ap(images: list) -> float:
    """`images`: per image the objects (box, class, crowd) and detections (box, score, class)."""
    aps = []
    for label in (0, 1):
        total = sum(cls == label and not crowd for objects, _ in images for _, cls, crowd in objects)
        if not total:
            continue
        for threshold in np.linspace(0.5, 0.95, 10):
            outcome = []
            for objects, detections in images:
                mine = [(box, crowd) for box, cls, crowd in objects if cls == label]
                outcome += slow_hits(mine, [(box, s) for box, s, cls in detections if cls == label], float(threshold))
            outcome.sort(key=lambda each: -each[0])
            points = []
            for rank in range(1, len(outcome) + 1):
                hits = sum(hit for _, hit in outcome[:rank])
                points.append((hits / total, hits / rank))
            best = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
            aps.append(float(np.mean(best)))
    return float(np.mean(aps)) if aps else math.nan


corners = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))
boxes = corners.map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
truths = st.lists(st.tuples(boxes, st.integers(0, 1), st.booleans()), max_size=4)
guesses = st.lists(st.tuples(boxes, st.integers(0, 1)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(truths, guesses), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_agrees_with_slow_loops_in_any_order(scenes: list, random) -> None:
    count = sum(len(detections) for _, detections in scenes)
    scores = iter(random.sample(range(1, count + 1), count))  # all different: ties have no defined order
    images = [(objects, [(box, next(scores) / 64, cls) for box, cls in each]) for objects, each in scenes]
    truth = data(*(image(row + 1, objects) for row, (objects, _) in enumerate(images)), classes=2)
    expected = slow_ap(images)
    for _ in range(2):
        got = average_precision(truth, [found(*detections) for _, detections in images]).ap
        assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)
        for _, detections in images:
            random.shuffle(detections)
