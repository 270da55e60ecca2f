"""LVIS's federated AP against a slow loop written from its definition (arXiv:1908.03195)."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxless.data.annotations.read import read_labels
from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, average_precision, verified
from boxless.evaluation.precision_recall import precision_recall

CLASSES, GROUPS = ("a", "b", "c", "d"), ("r", "c", "f", "f")
IDS = (7, 3, 11, 5)  # not in order


def data_of(images, frequencies=GROUPS):
    """`images`: (objects as (box, class), negative classes, not exhaustively labelled classes)."""
    return LabelledData(
        "here",
        CLASSES,
        IDS,
        tuple(
            LabelledImage(
                Path(f"{n}.jpg"),
                n + 1,
                64,
                64,
                np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
                np.array([k for _, k in objects], np.int64),
                np.zeros(len(objects), bool),
                negative=tuple(negative),
                not_exhaustive=tuple(partly),
            )
            for n, (objects, negative, partly) in enumerate(images)
        ),
        frequencies=frequencies,
    )


def found_in(images):
    return [
        Detections(
            np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
            np.array([score for _, _, score in found], np.float32),
            np.array([k for _, k, _ in found], np.int64),
        )
        for found in images
    ]


def iou(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(wide, 0) * max(high, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def slow_ap(images, detected, k, threshold):
    objects = sum(label == k for labels, _, _ in images for _, label in labels)
    if not objects:
        return math.nan
    outcomes = []  # (score, hit) of all that count
    for (labels, negative, partly), found in zip(images, detected, strict=True):
        mine = [box for box, label in labels if label == k]
        if not mine and k not in negative:
            continue  # nothing is known of this class here
        free = list(mine)
        for box, score in sorted(((b, s) for b, label, s in found if label == k), key=lambda entry: -entry[1]):
            best = None
            for other in free:
                if iou(box, other) >= min(threshold, 1 - 1e-10) and (best is None or iou(box, other) >= iou(box, best)):
                    best = other
            if best is not None:
                free.remove(best)
                outcomes.append((score, True))
            elif k not in partly:
                outcomes.append((score, False))
    outcomes.sort(key=lambda entry: -entry[0])
    hits, curve = 0, []
    for rank, (_, hit) in enumerate(outcomes, 1):
        hits += hit
        curve.append((hits / objects, hits / rank))
    levels = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in curve if r >= level), default=0.0) for level in levels]))


def expected(images, detected):
    """The summary: AP, AP50 and AP by frequency."""
    thresholds = np.linspace(0.5, 0.95, 10)
    table = np.array([[slow_ap(images, detected, k, t) for t in thresholds] for k in range(len(CLASSES))])

    def mean(rows):
        rows = rows[~np.isnan(rows)]
        return rows.mean() if len(rows) else math.nan

    by_group = [mean(table[[g == group for g in GROUPS]]) for group in "rcf"]
    return [mean(table), mean(table[:, 0]), *by_group]


corner, side = st.integers(0, 30), st.sampled_from([8, 10, 12, 20])
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
labels = st.lists(st.tuples(box, st.integers(0, 3)), max_size=4)
classes = st.sets(st.integers(0, 3), max_size=2)


@st.composite
def scene(draw):
    objects = draw(labels)
    negative = draw(classes) - {k for _, k in objects}
    shown = draw(labels) + [(b, k) for b, k in objects if draw(st.booleans())]
    return (objects, negative, draw(classes)), shown


@settings(max_examples=60)
@given(st.lists(scene(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_agrees_with_the_definition(scenes, random):
    images = [image for image, _ in scenes]
    scores = [s / 100 for s in random.sample(range(1, 100), sum(len(shown) for _, shown in scenes))]  # no ties
    detected = [[(b, k, scores.pop()) for b, k in shown] for _, shown in scenes]
    result = average_precision(data_of(images), found_in(detected), federated=True)
    values = [result.ap, result.ap50, *result.by_frequency.values()]
    np.testing.assert_allclose(values, expected(images, detected), atol=1e-6)


def test_agrees_on_real_labels_in_lviss_form(shared_data, tmp_path):
    coco = read_labels(shared_data / "coco256", "val", format="coco")
    document = coco.subset([row for row, image in enumerate(coco.images) if 1 < len(image.boxes) < 15][:30]).as_coco()
    random = np.random.default_rng(0)
    for n, category in enumerate(document["categories"]):
        category["frequency"] = "rcf"[n % 3]
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{Path(image.pop('file_name')).name}"
        image["neg_category_ids"] = random.choice([entry["id"] for entry in document["categories"]], 20, False).tolist()
        image["not_exhaustive_category_ids"] = random.choice(image["neg_category_ids"], 5, False).tolist()
    document["annotations"] = [entry for entry in document["annotations"] if not entry.pop("iscrowd")]
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    os.symlink(shared_data / "coco256" / "images" / "val", tmp_path / "val2017")
    data = read_labels(tmp_path, "val")
    images, detected = [], []
    for image in data.images:
        objects = list(zip(image.boxes.tolist(), image.labels.tolist(), strict=True))
        images.append((objects, set(image.negative), set(image.not_exhaustive)))
        moved = image.boxes + random.normal(0, 3, image.boxes.shape).astype(np.float32)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        strange = random.integers(0, len(data.classes), 20)  # what may be known not to be there, or not
        boxes = np.concatenate([moved, np.tile(np.float32([0, 0, 50, 50]), (20, 1))])
        labels = np.concatenate([image.labels, strange])
        detected.append(Detections(boxes, random.random(len(boxes)).astype(np.float32), labels))
    result = average_precision(data, detected, federated=True)
    found = [list(zip(d.boxes.tolist(), d.labels.tolist(), d.scores.tolist(), strict=True)) for d in detected]
    values = [slow_ap(images, found, k, 0.5) for k in range(len(data.classes))]
    assert result.ap50 == pytest.approx(np.nanmean(values), abs=1e-6) and 0.3 < result.ap50 < 0.99


def test_worked_by_hand():
    one, two, away = (0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50)
    images = [
        ([(one, 0)], {1}, set()),
        ([(one, 0)], set(), {0}),  # not every `a` is labelled
        ([(two, 1)], set(), set()),
    ]
    detected = [
        [(one, 0, 0.5), (away, 1, 0.99), (away, 2, 0.9)],  # hit; b is known not to be here: miss; c: unknown
        [(away, 0, 0.9), (one, 0, 0.4)],  # does not count, as it may be right; hit
        [(two, 1, 0.8), (away, 0, 0.95)],  # hit; nothing is known of `a` here
    ]
    result = average_precision(data_of(images), found_in(detected), federated=True)
    assert result.per_class["a"] == pytest.approx(1) and result.per_class["b"] == pytest.approx(0.5)
    assert result.by_frequency["APr"] == pytest.approx(1) and result.by_frequency["APc"] == pytest.approx(0.5)
    assert math.isnan(result.by_frequency["APf"]) and result.ap == pytest.approx(0.75) and math.isnan(result.ar100)
    ordinary = average_precision(data_of(images), found_in(detected))
    assert ordinary.per_class["a"] < 1 and not ordinary.by_frequency


def test_curves_have_the_areas_that_ap_has():
    one, away = (0, 0, 10, 10), (40, 40, 50, 50)
    images = [([(one, 0)], {1}, set()), ([(one, 0)], set(), {0}), ([(one, 1)], set(), set())]
    detected = [
        [(one, 0, 0.5), (away, 1, 0.99), (away, 2, 0.9)],  # b is known not to be here; of c nothing is known
        [(away, 0, 0.9), (one, 0, 0.4)],  # not every `a` is labelled
        [((0, 0, 10, 7), 1, 0.8), *((away, 0, 0.95 + n / 10_000) for n in range(110))],  # right at IoU 0.5 alone
    ]
    data, found = data_of(images), found_in(detected)
    result = average_precision(data, found, federated=True)
    assert (result.ap50, result.ap75) == (pytest.approx(0.75), pytest.approx(0.5))
    for each in (found, verified(data, found)):
        np.testing.assert_allclose(precision_recall(data, each).means.mean(1), [result.ap50, result.ap75], atol=1e-12)


def test_what_labels_speak_of_keeps_its_masks_and_keypoints():
    images = [([((0, 0, 10, 10), 0)], {1}, set())]
    boxes, labels = np.arange(16, dtype=np.float32).reshape(4, 4), np.array([2, 0, 3, 1])
    masks = [{"size": [64, 64], "counts": str(n)} for n in range(4)]
    found = Detections(boxes, np.float32([0.9, 0.8, 0.7, 0.6]), labels, masks, boxes.reshape(4, 2, 2))
    (kept,) = verified(data_of(images), [found])
    assert kept.labels.tolist() == [0, 1] and kept.masks == [masks[1], masks[3]]
    for name in ("boxes", "scores", "keypoints"):
        assert np.array_equal(getattr(kept, name), getattr(found, name)[[1, 3]])
    assert verified(data_of(images, ()), [found]) == [found]  # other labels speak of all classes


def test_the_300_surest_of_an_image_count():
    good, far = (0, 0, 10, 10), (40, 40, 50, 50)
    images = [([(good, 0)], set(), set())]
    others = [(far, 3, 0.5 + n / 1000) for n in range(299)]
    assert average_precision(data_of(images), found_in([[*others, (good, 0, 0.1)]]), federated=True).ap == 1
    crowded = [*others, (far, 3, 0.9), (good, 0, 0.1)]
    assert average_precision(data_of(images), found_in([crowded]), federated=True).ap == 0


def test_other_labels_are_refused():
    images = [([((0, 0, 10, 10), 0)], set(), set())]
    for frequencies in ((), ("", "r", "r", "r")):
        with pytest.raises(UserError, match="here: metric=lvis needs LVIS's labels"):
            average_precision(data_of(images, frequencies), found_in([[]]), federated=True)
    assert average_precision(data_of(images, ("r", "", "", "")), found_in([[]]), federated=True).ap == 0
