"""RT-DETR end to end: backbone and hybrid encoder pretrained by SoCo and the joint method, fine-tuned, used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FINETUNE, PRETRAIN, finetuning, pretraining

from boxless import evaluate, finetune, pretrain
from boxless.detectors.hybrid_encoder import HybridConfig
from boxless.detectors.rt_detr import RTDETR
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.export.libraries import to_torchvision_detector
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.joint import JointConfig
from boxless.methods.lc import LocalConfig
from boxless.methods.soco import SoCoConfig
from boxless.recipes.load import load
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run
from boxless.runs.weights import with_trunk_of
from boxless.tasks.compare_starts import resolve_starts
from boxless.tasks.detect import detect_images, find_images, load_detector
from boxless.tasks.finetune import make_detector_optimizer

SIZES = {"trunk.neck": "hybrid", "trunk.hybrid.feedforward": 24, "trunk.hybrid.expansion": 0.5}
SHORT = {"epochs": 1, "checkpoint_every": 9}
KIND = {"detector.kind": "rt_detr", "detector.rt_detr.queries": 8, "detector.rt_detr.layers": 2}
DETR = {
    **{key: value for key, value in FINETUNE.items() if not key.startswith(("trunk.", "detector.", "recipe"))},
    **KIND,
}


def rt_detr(scenes: Path, out: Path, weights: str | None, **changes: Any) -> Run:
    labels = scenes / "annotations"
    images = {"data": str(labels / "train.json"), "val": str(labels / "val.json")}
    settings = {**DETR, "iterations": 2, "evaluate_every": 1, "precision": "32-true", **changes}
    return finetune(**images, out=str(out), weights=weights, recipe="rt-detr-small", quiet=True, **settings)


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretraining(scenes, tmp_path_factory.mktemp("soco") / "run", "soco", **SIZES, **SHORT)


def test_soco_hands_backbone_and_hybrid_encoder_over(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    assert pretrained.summary["trains"] == ["backbone", "hybrid encoder", "RoI head"]
    run = rt_detr(scenes, tmp_path / "run", str(pretrained.path))
    assert "100.0% of parameters; backbone ok, hybrid encoder ok" in run.summary["weights"]
    recipe = load(run.recipe_file, FinetuneRecipe)
    assert (recipe.trunk.neck, recipe.trunk.fpn_channels, recipe.trunk.hybrid.feedforward) == ("hybrid", 16, 24)

    evaluated = evaluate(str(run.path), data=str(scenes / "annotations" / "val.json"), quiet=True)
    assert evaluated is not None
    index = find_images(str(scenes / "images" / "unlabelled"))
    twice = []
    for _ in range(2):
        detector, classes, recipe = load_detector(run.path)
        assert isinstance(detector, RTDETR) and len(classes) == 10
        twice.append([found for _, found in detect_images(detector, index, recipe, score=0.0)])
    assert len(twice[0]) == 8 and all(len(found.boxes) for found in twice[0])
    assert all((a.boxes == b.boxes).all() for a, b in zip(*twice, strict=True))
    with pytest.raises(UserError, match="torchvision has no RT-DETR"):
        to_torchvision_detector(run, "x.safetensors")

    again = rt_detr(scenes, tmp_path / "again", str(run.path))
    assert "backbone ok, hybrid encoder ok" in again.summary["weights"]


def test_weights_go_from_and_to_other_detectors(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    soco = pretraining(scenes, tmp_path / "fpn", "soco", **SHORT)
    from_fpn = rt_detr(scenes, tmp_path / "new", str(soco.path))
    assert "backbone ok, hybrid encoder new" in from_fpn.summary["weights"]
    to_fpn = finetuning(scenes, tmp_path / "faster", str(pretrained.path), iterations=1, evaluate_every=9)
    assert "backbone ok, FPN new" in to_fpn.summary["weights"]


def test_joint_pretrains_the_encoder_from_a_runs_weights(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    settings = {**PRETRAIN, **SIZES, **SHORT, "proposals.method": "grid", "method.pixel_map": "P3"}
    settings["method.local.hidden"] = settings["method.local.output"] = 8
    images = str(scenes / "images" / "unlabelled")
    run = pretrain(images, str(tmp_path / "run"), "joint-r50-fpn", quiet=True, weights=str(pretrained.path), **settings)
    assert run.summary["trains"] == ["backbone", "hybrid encoder", "RoI head"]
    assert "backbone ok, hybrid encoder ok, RoI head ok" in run.summary["init"]
    before, after = (load_file(each.weights) for each in (pretrained, run))
    assert before.keys() == after.keys()
    moved = [key for key in before if "fpn." in key and "num_batches" not in key and (before[key] != after[key]).any()]
    assert any("aifi" in key for key in moved) and any("pan_blocks" in key for key in moved)


@pytest.mark.parametrize("name", ["soco", "soco, all levels", "joint"])
def test_gradients_reach_the_whole_encoder_and_never_the_target(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "output": 8, "boxes": 12}
    methods: dict[str, Any] = {
        "soco": SoCoConfig(**sizes, small_size=112),
        "soco, all levels": SoCoConfig(**sizes, small_size=112, pooling="all_levels"),
        "joint": JointConfig(**sizes, local=LocalConfig(hidden=8, output=8)),
    }
    trunk = Trunk(
        TrunkConfig("resnet18", neck="hybrid", fpn_channels=16, box_head_width=16, hybrid=HybridConfig(4, 24, 0.5))
    )
    method = methods[name].build(trunk).train()
    views = tuple(View(torch.randn(2, 3, spec.size, spec.size), identity(2)) for spec in methods[name].views())
    corners = torch.rand(2, 12, 2) * 4
    boxes = torch.cat([corners, corners + torch.linspace(20, 218, 12)[:, None]], -1)  # some for each level
    method(views, boxes, torch.ones(2, 12, dtype=torch.bool), torch.Generator().manual_seed(0)).loss.backward()
    encoder = trunk.parts["hybrid encoder"]
    silent = ".k_proj.bias"  # softmax is blind to what all its inputs share
    assert [k for k, p in encoder.named_parameters() if not p.grad.any() and not k.endswith(silent)] == []
    targets = [p for k, p in method.named_parameters() if "target_" in k]
    assert targets and all(p.grad is None and not p.requires_grad for p in targets)
    following = dict(method.named_parameters())
    before = {k: p.detach().clone() for k, p in following.items() if "target_" in k}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    method.after_step(0, 10)
    moved = [k for k, p in before.items() if "aifi" in k and (following[k] != p).all()]
    assert len(moved) == sum("aifi" in k for k, _ in encoder.named_parameters())


def test_pixel_term_cannot_have_what_the_encoder_does_not_give() -> None:
    trunk = Trunk(TrunkConfig("resnet18", neck="hybrid", fpn_channels=16))
    with pytest.raises(UserError, match=r"^method\.pixel_map: P2; the hybrid encoder gives P3, P4 and P5$"):
        JointConfig(pixel_map="P2").build(trunk)


def test_a_comparison_keeps_the_encoder_where_the_method_can_have_it() -> None:
    soco = load("soco-small", PretrainRecipe)
    for neck, wanted in (("hybrid", "hybrid"), ("fpn", "fpn"), ("transformer", "fpn"), ("c4", "fpn")):
        common = CompareRecipe(pretrain=replace(soco, trunk=replace(soco.trunk, neck=neck)))
        (start,) = resolve_starts(["soco"], common, None)
        assert start.recipe is not None and start.recipe.trunk.neck == wanted


def test_recipes_build_and_the_body_has_its_own_rate(pretrained: Run) -> None:
    from boxless.detectors.detector import build_trunk

    recipe = load("rt-detr-small", FinetuneRecipe)
    trunk = build_trunk(recipe.trunk, recipe.detector)
    optimizer = make_detector_optimizer(recipe.detector.build(trunk, 3), trunk, recipe.optim)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {scales[id(p)] for p in trunk.backbone.body.parameters()} == {0.5}
    assert {scales[id(p)] for p in trunk.parts["hybrid encoder"].parameters()} == {1.0}
    taken = with_trunk_of(load("rt-detr-r50", FinetuneRecipe), str(pretrained.path))
    assert (taken.trunk.neck, taken.trunk.norm, taken.trunk.hybrid.feedforward) == ("hybrid", "sync", 24)
    assert json.dumps(taken.optim.drops) == "[]"
