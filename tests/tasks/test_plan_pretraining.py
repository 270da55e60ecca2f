"""A pretraining without a recipe is planned from the images and said beforehand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import boxless
from boxless.errors import UserError
from boxless.methods.densecl import DenseCLConfig
from boxless.recipes.densecl import DENSECL_AUTO
from boxless.recipes.faster_rcnn import FASTER_RCNN_AUTO
from boxless.runs.run import Run
from boxless.tasks.plan_pretraining import FEWEST, MOST, fitted
from boxless.tasks.schedule import PretrainSchedule

TINY = {"weights": "none", "batch_size": 4, "workers": 0, "method.size": 32}


@given(st.integers(2, 200_000))
def test_the_length_suits_the_images(images: int) -> None:
    recipe = fitted(DENSECL_AUTO, images, frozenset())
    schedule = PretrainSchedule.of(recipe, images)
    assert FEWEST - 1 <= schedule.steps <= MOST + 1
    assert schedule.warmup == schedule.steps // 10
    assert isinstance(recipe.method, DenseCLConfig)
    assert recipe.method.queue_length <= max(images // 2, schedule.batch)


def test_what_the_user_has_set_stays() -> None:
    given_keys = frozenset({"epochs", "optim.warmup_epochs", "method.queue_length"})
    assert fitted(DENSECL_AUTO, 100, given_keys) == DENSECL_AUTO


def test_the_default_pretrains_the_trunk_of_the_default_detector() -> None:
    assert DENSECL_AUTO.trunk == FASTER_RCNN_AUTO.trunk


def pretrain(scenes: Path, out: Path, **settings: object) -> Run:
    return boxless.pretrain(str(scenes / "images" / "unlabelled"), str(out), **{**TINY, **settings})  # type: ignore[arg-type]


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(scenes, tmp_path / "run", dry_run=True)
    said = capsys.readouterr().err
    assert "plan: densecl on resnet18, from random weights" in said and "8 images" in said
    assert "300 steps of 4 images" in said and "s a step" in said
    assert not (tmp_path / "run").exists()
    pretrain(scenes, tmp_path / "run", dry_run=True, **{"weights": None})
    assert "efficientnet_lite0, weights imagenet" in capsys.readouterr().err


def test_minutes_decide_the_length_and_a_run_that_goes_on_keeps_it(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--minutes 0\.0001: room for \d+ steps"):
        pretrain(scenes, tmp_path / "run", minutes=0.0001)
    with pytest.raises(UserError, match=r"--minutes: the time of soco is not measured; give --epochs"):
        pretrain(scenes, tmp_path / "run", minutes=1, recipe="soco-small")
    run = pretrain(scenes, tmp_path / "run", epochs=2, quiet=True, **{"method.queue_length": 8})
    assert run.summary["steps"] == 4
    (run.path / "summary.json").unlink()
    assert pretrain(scenes, tmp_path / "run", epochs=2, quiet=True, **{"method.queue_length": 8}).finished
