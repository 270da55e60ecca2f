"""DETR end to end: pretrained by UP-DETR, fine-tuned from that and from other backbones, used."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_runs import FINETUNE, finetuning, pretraining

from boxless import finetune, pretrain
from boxless.detectors import detr as detrs
from boxless.errors import UserError
from boxless.export.libraries import to_torchvision_detector
from boxless.export.weights import body_tensors
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import detect_images, find_images, load_detector

SIZES = {"trunk.transformer.width": 16, "trunk.transformer.feedforward": 24, "trunk.transformer.queries": 6}
UP_DETR = {"method.size": 64, "method.patch_size": 32, "method.patches": 3, "batch_size": 4, "workers": 0, "epochs": 1}
DETR = {key: value for key, value in FINETUNE.items() if not key.startswith(("trunk.", "detector."))}
SHORT = {"iterations": 2, "evaluate_every": 9, "precision": "32-true"}


def up_detr(scenes: Path, out: Path, **changes: Any) -> Run:
    settings = {**SIZES, **UP_DETR, "precision": "32-true", **changes}
    return pretrain(str(scenes / "images" / "unlabelled"), str(out), "up-detr-small", quiet=True, **settings)


def detr(scenes: Path, out: Path, weights: str | None, **changes: Any) -> Run:
    labels = scenes / "annotations"
    images = {"data": str(labels / "train.json"), "val": str(labels / "val.json")}
    settings = {**DETR, **SHORT, **changes}
    return finetune(**images, out=str(out), weights=weights, quiet=True, **settings)


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return up_detr(scenes, tmp_path_factory.mktemp("up-detr") / "run")


def test_up_detr_hands_its_whole_detector_over(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    assert pretrained.summary["trains"] == ["backbone", "transformer"]
    run = detr(scenes, tmp_path / "run", str(pretrained.path), **{"detector.kind": "detr", "detector.no_object": 0.05})
    assert "100.0% of parameters; backbone ok, transformer ok" in run.summary["weights"]
    recipe = load(run.recipe_file, FinetuneRecipe)
    assert recipe.trunk.neck == "transformer" and recipe.trunk.transformer.queries == 6

    detector, classes, recipe = load_detector(run.path)
    assert isinstance(detector, detrs.DETR) and len(classes) == 10
    index = find_images(str(scenes / "images" / "unlabelled"))
    found = [detections for _, detections in detect_images(detector, index, recipe, score=0.0)]
    assert len(found) == 8 and all(len(one.boxes) == 6 for one in found)
    with pytest.raises(UserError, match="torchvision has no DETR"):
        to_torchvision_detector(run, "x.safetensors")
    assert "layer4.1.bn2.running_var" in body_tensors(run)


def test_frozen_backbone_is_saved_as_it_came(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    changes = {"method.freeze_backbone": True, "optim.base_lr": 1e-2}
    run = up_detr(scenes, tmp_path / "run", weights=str(pretrained.path), **changes)
    assert run.summary["trains"] == ["transformer"]
    before, after = (load_file(each.weights) for each in (pretrained, run))
    assert before.keys() == after.keys()
    same = {key: bool((before[key] == after[key]).all()) for key in before}
    assert all(value for key, value in same.items() if key.startswith("backbone."))
    assert not any(value for key, value in same.items() if key.endswith("_proj.weight") and "layers.1" in key)


def test_backbones_go_from_and_to_other_detectors(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    byol = pretraining(scenes, tmp_path / "byol", "byol", epochs=1, checkpoint_every=9)
    to_detr = detr(scenes, tmp_path / "detr", str(byol.path), **{**SIZES, "recipe": "detr-small"})
    assert "backbone ok, transformer new" in to_detr.summary["weights"]
    assert load(to_detr.recipe_file, FinetuneRecipe).trunk.transformer.encoder_layers == 2  # the recipe's, not byol's
    from_up_detr = finetuning(scenes, tmp_path / "faster", str(pretrained.path), **SHORT)
    assert "backbone ok, FPN new, RoI head new" in from_up_detr.summary["weights"]


def test_body_has_its_own_learning_rate() -> None:
    from boxless.detectors.trunk import Trunk
    from boxless.tasks.finetune import make_detector_optimizer

    recipe = load("detr-small", FinetuneRecipe)
    trunk = Trunk(recipe.trunk)
    optimizer = make_detector_optimizer(recipe.detector.build(trunk, 3), trunk, recipe.optim)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {scales[id(p)] for p in trunk.backbone.parameters()} == {0.5}
    assert {scales[id(p)] for p in trunk.transformer.parameters()} == {1.0}
