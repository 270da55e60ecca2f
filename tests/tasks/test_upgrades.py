"""Runs of earlier formats, kept as files by keep_runs.py, are read; one of a later format is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from keep_runs import FINETUNE, SCENES, TINY
from tiny_body import BACKBONE

import boxless
from boxless.cli import main
from boxless.data.scenes import make_scenes
from boxless.errors import UserError
from boxless.export.model_card import model_card
from boxless.recipes.load import describe, load
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.run import FORMAT, Run, start_run

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted(path.name for path in FIXTURES.iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes that the kept runs saw."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, **SCENES)
    return folder


@pytest.fixture(params=FORMATS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a pretraining and a fine-tuning of a format, to be written into."""
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / "kept"))


def test_each_format_is_kept_and_small() -> None:
    assert [f"format-{number}" for number in range(1, FORMAT + 1)] == FORMATS
    for name in FORMATS:
        files = [path for path in (FIXTURES / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 200 * 1024


def test_recipes_and_summaries_are_read(kept: Path) -> None:
    assert load(kept / "pretrain" / "recipe.yaml", PretrainRecipe).trunk.backbone == BACKBONE
    assert load(kept / "finetune" / "recipe.yaml", FinetuneRecipe).trunk.fpn_channels == 8
    assert Run(kept / "pretrain").summary["health"] == "healthy" and Run(kept / "finetune").finished


def test_settings_that_an_older_version_did_not_have_are_compared(kept: Path) -> None:
    run = kept / "pretrain"
    recipe = load(run / "recipe.yaml", PretrainRecipe)
    start_run(run, describe(recipe, run / "recipe.yaml"), {}).close()
    changed = describe(override(recipe, {"decoder": "gpu"}), run / "recipe.yaml")
    with pytest.raises(UserError, match="decoder was processor, is gpu"):
        start_run(run, changed, {})


def test_keys_of_other_detectors_are_no_change_of_settings(kept: Path) -> None:
    run = kept / "finetune"
    recipe = load(run / "recipe.yaml", FinetuneRecipe)
    start_run(run, describe(recipe, run / "recipe.yaml"), {}).close()
    assert "no_object" not in (run / "recipe.yaml").read_text()


def test_detector_finds_what_it_found(kept: Path, images: Path, tmp_path: Path) -> None:
    labels = str(images / "annotations" / "val.json")
    result = boxless.evaluate(str(kept / "finetune"), labels, str(tmp_path / "evaluation"), quiet=True)
    before = json.loads((kept / "finetune" / "gallery.json").read_text())
    after = json.loads((tmp_path / "evaluation" / "gallery.json").read_text())
    assert result.images == 2 and before["counts"] == after["counts"]
    for then, now in zip(before["shown"], after["shown"], strict=True):
        assert now["truth"] == then["truth"] and len(then["found"]) == len(now["found"]) > 0
        surest = torch.tensor(then["found"][0])  # x, y, x, y, class, score
        assert min((torch.tensor(found) - surest).abs().max() for found in now["found"]) < 0.15
    predicted = boxless.predict(
        str(kept / "finetune"), str(images / "images" / "val"), str(tmp_path / "found"), quiet=True
    )
    assert predicted.images == 2 and not predicted.skipped


def test_pretraining_is_learned_from(kept: Path, images: Path, tmp_path: Path) -> None:
    labels = {"data": str(images / "annotations" / "train.json"), "val": str(images / "annotations" / "val.json")}
    settings = {**FINETUNE, **TINY, "iterations": 1}
    run = boxless.finetune(**labels, out=str(tmp_path / "run"), weights=str(kept / "pretrain"), quiet=True, **settings)
    assert "backbone ok, FPN ok, RoI head ok" in run.summary["weights"]


def test_page_and_figures_are_made(kept: Path) -> None:
    page = boxless.report([str(kept / "pretrain")], quiet=True)
    assert "healthy" in page.path.read_text()
    drawn = boxless.figures(str(kept / "pretrain"), kinds="curves", quiet=True)
    assert drawn.written


@pytest.mark.parametrize("command", ["evaluate", "finetune", "predict", "report", "figures"])
def test_a_later_format_is_refused_in_one_line(
    command: str, kept: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kept / ("pretrain" if command == "finetune" else "finetune")
    environment = json.loads((run / "environment.json").read_text())
    later = {**environment, "format": FORMAT + 1, "boxless": "9.8"}
    (run / "environment.json").write_text(json.dumps(later))
    labels = str(images / "annotations" / "val.json")
    rest = {
        "evaluate": ["--run", str(run), "--data", labels],
        "finetune": ["--weights", str(run), "--data", labels, "--val", labels, "--out", str(tmp_path / "run")],
        "predict": ["--run", str(run), "--data", str(images), "--out", str(tmp_path / "found")],
        "report": ["--run", str(run)],
        "figures": ["--run", str(run)],
    }
    assert main([command, *rest[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"boxless: error: {run}: a run of format {FORMAT + 1}, written by boxless 9.8; this is boxless "
    )
    assert line.endswith("pip install 'boxless>=9.8'")


@pytest.mark.parametrize("content", [b"recipe: [1", b"\xff\xfe", b""])
def test_a_run_whose_recipe_is_damaged_is_not_gone_on_with(content: bytes, kept: Path) -> None:
    run = kept / "pretrain"
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"recipe.yaml: cannot be read .*; copy it from the original run"):
        start_run(run, recipe, {})


@pytest.mark.parametrize("content", ["{", '{"inputs": []}', '{"inputs": null}'])
def test_a_run_whose_environment_is_damaged_is_gone_on_with_and_published(content: str, kept: Path) -> None:
    run = kept / "pretrain"
    (run / "environment.json").write_text(content)
    assert "Unlabelled images without labels" in model_card(Run(run), [])
    start_run(run, (run / "recipe.yaml").read_text(), {"images": 3}).close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "x"}'])
def test_a_damaged_description_is_no_reason_to_refuse(content: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match="not a finished run"):
        _ = Run(tmp_path).summary
