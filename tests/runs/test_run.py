"""A run's folder as everything else reads it."""

from pathlib import Path

import pytest

from boxless.errors import UserError
from boxless.recipes.load import describe, load
from boxless.recipes.schema import PretrainRecipe
from boxless.runs.run import Run


@pytest.mark.parametrize(
    ("there", "reason"), [(False, "no such folder"), (True, r"is not a run \(no recipe\.yaml in it\)")]
)
def test_what_is_not_a_run_is_refused(there: bool, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(UserError, match=f"run {folder}: {reason}; name the folder that"):
        Run.open(folder)


def test_a_run_gives_its_recipe_and_says_when_it_has_no_weights_yet(tmp_path: Path) -> None:
    recipe = load("byol-small", PretrainRecipe)
    (tmp_path / "recipe.yaml").write_text(describe(recipe, "byol-small"))
    run = Run.open(tmp_path)
    assert run.recipe == recipe and run.settings["method.name"] == "byol" and run.settings["recipe"] == "byol-small"
    assert not run.finished and run.metrics == {} and run.labels == {} and run.inputs == {} and run.checkpoints == []
    with pytest.raises(UserError, match=r"did not finish \(no weights\.safetensors\)"):
        Run.open(tmp_path, trained=True)
    with pytest.raises(UserError, match="not a finished run"):
        _ = run.summary
    with pytest.raises(UserError, match=r"labels\.json: expected the run's list of classes"):
        _ = run.classes


def test_metrics_leave_out_damaged_lines_and_one_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n3,loss,1.5\nx\n-1,loss,2\n7,loss,nan\n7,val/AP,0.2\n9,lo")
    metrics = Run(tmp_path).metrics
    assert metrics["val/AP"] == ([7], [0.2]) and metrics["loss"][0] == [3, 7] and metrics.keys() == {"loss", "val/AP"}


def test_a_damaged_file_costs_its_damaged_part_alone(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"step": 5, "status": ["x"], "seconds_left": null}')
    gaps: list[str] = []
    assert Run(tmp_path).read("progress.json", gaps) == {"step": 5, "seconds_left": None}
    assert len(gaps) == 1 and "status" in gaps[0]
    (tmp_path / "labels.json").write_text('{"classes": ["cat", 3]}')
    assert Run(tmp_path).classes == ("cat", "3")


def test_a_comparisons_recipe_is_none_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("recipe: compare-small\n")
    with pytest.raises(UserError, match="CompareRecipe"):
        _ = Run(tmp_path).recipe
