"""`boxless.load`: a detector in Python finds what `boxless predict` writes, in images of any form."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import boxless
from boxless.data.images import decode
from boxless.errors import UserError

LOW = 0.05  # two steps of training give no sure detection


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_finds_what_predict_writes(digits, runs, tmp_path, kind):
    boxless.predict(getattr(runs, kind), str(digits.images), str(tmp_path / "found"), score=LOW, quiet=True)
    document = json.loads((tmp_path / "found" / "predictions.json").read_text())
    written = defaultdict(list)
    for entry in document["annotations"]:
        written[entry["image_id"]].append({key: value for key, value in entry.items() if key != "id"})

    files = [image["file_name"] for image in document["images"]]
    detector = boxless.load(getattr(runs, kind))
    found = detector.predict(files, LOW)
    assert [objects.to_coco(number) for number, objects in enumerate(found, 1)] == [written[n + 1] for n in range(6)]

    found[0].plot().save(tmp_path / "drawn.jpg", quality=92)
    np.testing.assert_array_equal(decode(tmp_path / "drawn.jpg"), decode(tmp_path / "found" / "images" / "000000.jpg"))
    some = max(found, key=len)
    assert len(some) == len(list(some)) == len(some.boxes) > 0
    first = next(iter(some))
    assert first.label == some.labels[0] == detector.classes[some.classes[0]] and first.score > LOW
    assert (some.masks is not None) == (kind == "masks")
    if some.masks is not None:
        assert some.masks.shape == (len(some), 64, 64) and some.masks.dtype == bool


def test_an_image_may_have_any_form(digits, runs):
    detector = boxless.load(Path(runs.boxes) / "weights.safetensors")
    file = digits.images / "000000.jpg"
    pixels = decode(file)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [file, str(file), PIL.Image.open(file), pixels, channels_first, channels_first / 255]
    expected = detector.predict(file, 0.01)
    for form in forms:
        found = detector.predict(form, 0.01)
        assert len(found) == len(expected) > 0 and found.labels == expected.labels
        np.testing.assert_array_equal(found.boxes, expected.boxes)
    grey = pixels[..., 0]
    as_colour = detector.predict(np.stack([grey] * 3, 2), 0.01)
    for form in (grey, PIL.Image.fromarray(grey)):
        np.testing.assert_array_equal(detector.predict(form, 0.01).boxes, as_colour.boxes)
    assert len(detector.predict(pixels, 1.0)) == 0 and detector.predict([]) == []


def test_what_is_no_image_or_no_detector_is_said(runs, tmp_path):
    detector = boxless.load(runs.boxes)
    wrong = [
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.float32),
        torch.full((3, 5, 5), 200.0),
        torch.ones(5, 5),
    ]
    for image in (*wrong, tmp_path / "none.jpg", 5):
        with pytest.raises(UserError):
            detector.predict(image)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="threshold"):
        detector.predict(wrong[0], threshold=2)
    for place, said in ((runs.pretrained, "pretraining"), (tmp_path, "not a run"), (tmp_path / "x", "no such folder")):
        with pytest.raises(UserError, match=said):
            boxless.load(place)


def test_objects_become_those_of_supervision_or_it_is_said_how(runs, digits):
    (found,) = boxless.load(runs.masks).predict([digits.images / "000000.jpg"], 0.01)
    try:
        import supervision
    except ImportError:
        with pytest.raises(UserError, match="pip install supervision"):
            found.to_supervision()
        return
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections) and len(theirs) == len(found)
    assert theirs.data["class_name"].tolist() == found.labels
