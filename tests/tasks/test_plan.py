"""A fine-tuning without a recipe is planned: for its labels, within memory and time, and said beforehand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import boxless
from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.errors import UserError
from boxless.recipes.faster_rcnn import FASTER_RCNN_AUTO
from boxless.recipes.overrides import override
from boxless.runs.run import Run
from boxless.tasks import plan
from boxless.tasks.plan import ANCHORS, FEWEST_BY_LABELS, choose_settings

QUICK = {"iterations": 4, "batch_size": 2, "min_size": (64,), "max_size": 96, "workers": 0, "checkpoint_every": 2}


def labels(side: float, images: int = 20, width: int = 640, height: int = 480) -> LabelledData:
    """Square objects of a side, px, two in each image."""
    boxes = np.array([[0, 0, side, side], [10, 10, 10 + side, 10 + side]], np.float32)
    one = LabelledImage(Path("x.jpg"), 0, width, height, boxes, np.zeros(2, np.int64), np.zeros(2, bool), None)
    return LabelledData("here", ("a",), (1,), tuple(replace(one, image_id=number) for number in range(images)))


@given(side=st.floats(4, 400), width=st.integers(100, 4000), height=st.integers(100, 4000), images=st.integers(1, 3000))
def test_settings_suit_the_labels(side: float, width: int, height: int, images: int) -> None:
    side = min(side, width / 2, height / 2)
    made = choose_settings(FASTER_RCNN_AUTO, labels(side, images, width, height), "cpu", ())
    (size,), longest, anchors = made["min_size"], made["max_size"], made["detector.anchor_sizes"]
    assert size % 16 == 0 and 64 <= size <= 400 and size <= longest <= 2 * size + 1
    assert anchors[0] in ANCHORS and anchors == tuple(anchors[0] * 2**level for level in range(5))
    shown = side * size / min(width, height)
    assert anchors[0] <= max(shown, ANCHORS[0]) + 1e-3
    assert FEWEST_BY_LABELS <= made["iterations"] <= plan.MOST_STEPS["cpu"]


def test_small_objects_get_larger_images_and_more_labels_more_steps() -> None:
    small, large = (choose_settings(FASTER_RCNN_AUTO, labels(side), "cuda", ()) for side in (12, 200))
    assert small["min_size"] > large["min_size"] and small["detector.anchor_sizes"] < large["detector.anchor_sizes"]
    few, many = (choose_settings(FASTER_RCNN_AUTO, labels(50, count), "cuda", ()) for count in (15, 1000))
    assert few["iterations"] == 547 and many["iterations"] == 4472  # 100 sqrt(N)


def test_what_the_user_has_set_stays() -> None:
    made = choose_settings(FASTER_RCNN_AUTO, labels(50), "cpu", ("min_size", "iterations"))
    assert "min_size" not in made and "iterations" not in made and "detector.anchor_sizes" in made


def test_anchors_suit_the_size_that_the_user_has_set() -> None:
    recipe = replace(FASTER_RCNN_AUTO, min_size=(160,))
    own, given_size = (choose_settings(recipe, labels(48), "cpu", given) for given in ((), ("min_size",)))
    assert own["detector.anchor_sizes"][0] == 16  # 48 px of 480 are 22 px of 224
    assert given_size["detector.anchor_sizes"][0] == 16 and "min_size" not in given_size
    small = choose_settings(replace(recipe, min_size=(96,)), labels(48), "cpu", ("min_size",))
    assert small["detector.anchor_sizes"][0] == 8  # 9.6 px


def finetune(scenes: Path, out: Path, **settings: object) -> Run:
    where = {role: str(scenes / "annotations" / f"{role}.json") for role in ("val",)}
    return boxless.finetune(str(scenes / "annotations" / "train.json"), out=str(out), **where, **settings)  # type: ignore[arg-type]


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(scenes, tmp_path / "run", weights="none", dry_run=True)
    said = capsys.readouterr().err
    assert "plan: faster_rcnn on resnet18" in said and "400 steps of 8 images" in said
    assert "s a step" in said and "memory:" in said and "labelled images" in said
    assert not (tmp_path / "run").exists()


def test_the_installed_imagenet_weights_are_the_start_unless_the_user_says_otherwise(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[str, dict[str, object]] = {
        "efficientnet_lite0": {},
        "resnet18": {"weights": "none"},
        "resnet34": {"trunk.backbone": "resnet34"},
        "resnet50": {"recipe": "faster-rcnn-fpn"},
    }
    size = {"min_size": (32,), "max_size": 48, "batch_size": 2}
    for backbone, settings in starts.items():
        finetune(scenes, tmp_path / "run", dry_run=True, **size, **settings)
        said = capsys.readouterr().err
        assert backbone in said and ("random weights" in said) == (backbone != "efficientnet_lite0")
    monkeypatch.setattr("boxless.runs.weights.is_installed", lambda: False)
    finetune(scenes, tmp_path / "run", dry_run=True, **size)
    assert "on resnet18, from random weights" in capsys.readouterr().err


@given(st.floats(1, 400), st.floats(10, 200))
def test_images_are_smaller_where_few_steps_fit(steps: float, side: float) -> None:
    recipe = override(FASTER_RCNN_AUTO, choose_settings(FASTER_RCNN_AUTO, labels(side), "cpu", ()))
    shown = plan.smaller(recipe, steps, labels(side), "cpu", ())
    before, after = recipe.min_size[-1], shown.min_size[-1]
    assert after == before if steps >= plan.WORTHWHILE else plan.LEAST_SIDE <= after < before
    assert shown.max_size - 1 <= recipe.max_size * after / before <= shown.max_size + 1
    assert shown.detector.anchor_sizes <= recipe.detector.anchor_sizes  # type: ignore[union-attr]
    assert plan.smaller(recipe, steps, labels(side), "cpu", ("min_size",)) == recipe


@given(st.floats(0.01, 1000), st.integers(1, 5000), st.floats(1, 100))
def test_a_plan_within_an_hour_keeps_the_fewest_steps(seconds: float, steps: int, minutes: float) -> None:
    recipe = replace(FASTER_RCNN_AUTO, iterations=steps)
    planned = plan.within(recipe, plan.Cost(seconds, 1, 2, 8), minutes).iterations
    assert planned is not None and planned <= steps
    assert planned == steps or planned >= plan.FEWEST_BY_LABELS
    assert planned <= plan.FEWEST_BY_LABELS or planned * seconds <= 60 * minutes + 1e-6


def test_a_planned_run_goes_on_with_the_same_plan(scenes: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "quiet": True}
    run = finetune(scenes, tmp_path / "run", **settings)
    assert run.summary["steps"] == 4 and run.settings["ema"] == 0.05
    (run.path / "summary.json").unlink()
    assert finetune(scenes, tmp_path / "run", **settings).finished


def test_a_detector_that_is_continued_keeps_its_size_and_anchors(scenes: Path, tmp_path: Path) -> None:
    first = finetune(
        scenes, tmp_path / "first", **QUICK, **{"detector.anchor_sizes": (12, 24, 48, 96, 192)}, quiet=True
    )
    rest = {key: value for key, value in QUICK.items() if key not in ("min_size", "max_size", "iterations")}
    measured = finetune(scenes, tmp_path / "same", weights=str(first.path), iterations=0, **rest, quiet=True)
    assert measured.settings["min_size"] == [64] and measured.settings["detector.anchor_sizes"] == [12, 24, 48, 96, 192]
    assert measured.summary["scores"] == first.summary["scores"]


def test_minutes_decide_the_steps(scenes: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "min_size": (32,), "max_size": 48, "quiet": True}
    del settings["iterations"]
    with pytest.raises(UserError, match=r"--minutes 0\.0001: room for \d+ steps"):
        finetune(scenes, tmp_path / "run", minutes=0.0001, **settings)
    assert not (tmp_path / "run").exists()


def test_memory_decides_the_parts_of_a_batch_or_refuses_in_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {2: 200, 4: 400}
    monkeypatch.setattr(plan, "_peak", lambda fabric, module, samples: peaks[len(samples)] * 10**9)
    settings = {**QUICK, "batch_size": 4, "iterations": 1, "quiet": True}
    monkeypatch.setattr(plan, "available_memory", lambda device: 300 * 10**9)
    run = finetune(scenes, tmp_path / "parts", **settings)
    assert run.settings["accumulate"] == 2  # two images, 200 GB, fit into 80 % of 300
    monkeypatch.setattr(plan, "available_memory", lambda device: 100 * 10**9)
    with pytest.raises(UserError, match=r"a step of one image needs 100\.\d GB, 100\.0 GB are free"):
        finetune(scenes, tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()
