import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import FINETUNE, finetuning, pretraining

from boxless import finetune
from boxless.data import detection
from boxless.data.annotations.read import read_labels
from boxless.data.detection import AugmentConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, freeze
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.errors import UserError
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.runs.run import Run
from boxless.runs.weights import with_trunk_of
from boxless.tasks.finetune import DetectTask, make_detector_optimizer
from boxless.tasks.labels import choose_labels, validation_labels
from boxless.tasks.schedule import FinetuneSchedule
from boxless.training.device import make_fabric

SHORT = {"iterations": 3, "evaluate_every": 2}


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretraining(scenes, tmp_path_factory.mktemp("byol") / "run", "byol", epochs=1, checkpoint_every=9)


@pytest.fixture(scope="module")
def finished(scenes: Path, pretrained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of Faster R-CNN on three of four scenes, from a BYOL run whose trunk it takes over."""
    own = {key: None for key in FINETUNE if key.startswith("trunk.")}
    settings = {**SHORT, **own, "label_count": 3}
    kept = {key: value for key, value in {**FINETUNE, **settings}.items() if value is not None}
    labels = scenes / "annotations"
    from boxless import finetune

    return finetune(
        str(labels / "train.json"),
        str(labels / "val.json"),
        str(tmp_path_factory.mktemp("detector") / "run"),
        weights=str(pretrained.path),
        quiet=True,
        **kept,
    )


def test_trunk_of_the_pretraining_run_is_taken_over_and_loaded(finished: Run) -> None:
    recipe = load(finished.recipe_file, FinetuneRecipe)
    assert (recipe.trunk.backbone, recipe.trunk.fpn_channels) == ("resnet18", 16)
    assert "backbone ok, FPN new, RoI head new" in finished.summary["weights"]


def test_run_folder_has_scores_labels_and_early_looks(finished: Run, scenes: Path) -> None:
    summary = finished.summary
    assert (summary["detector"], summary["labelled_images"], summary["steps"]) == ("faster_rcnn", 3, 3)
    assert 0 <= summary["scores"]["bbox"]["AP"] <= 1 and summary["skipped"] == {}
    labels = json.loads((finished.path / "labels.json").read_text())
    data = read_labels(scenes / "annotations" / "train.json")
    assert labels["classes"] == list(data.classes) and len(labels["images"]) == 3
    assert set(labels["images"]) < {image.image_id for image in data.images}
    metrics = finished.metrics
    assert metrics["val/AP"][0] == [1] and {"loss", "loss_objectness", "learning_rate"} <= metrics.keys()


def test_detector_is_a_source_of_weights_too(finished: Run, scenes: Path, tmp_path: Path) -> None:
    run = finetuning(scenes, tmp_path / "run", str(finished.path), **{**SHORT, "optim.lr": 0.0})
    assert "100.0% of parameters; backbone ok, FPN ok, RoI head ok" in run.summary["weights"]


def test_no_steps_measure_what_was_loaded(finished: Run, scenes: Path, tmp_path: Path) -> None:
    settings = {"iterations": 0, "ema": 0.5, "precise_norms": 2}
    again = finetuning(scenes, tmp_path / "again", str(finished.path), **settings)
    assert again.summary["scores"] == finished.summary["scores"] and again.summary["steps"] == 0
    assert set(again.summary["loaded"].values()) == {1.0}
    assert "RPN ok, predictor 10 of 10 classes by name" in again.summary["weights"]
    before, after = tensors(finished), tensors(again)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    nothing = finetuning(scenes, tmp_path / "nothing", iterations=0)
    assert nothing.summary["weights"] == "from scratch" and nothing.summary["loaded"] == {}


def test_a_detectors_file_is_built_as_it_is(scenes: Path, tmp_path: Path) -> None:
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, fpn_norm=False, box_head="2fc", box_head_width=24))
    save_file(FasterRCNNConfig().build(trunk, 80).state_dict(), tmp_path / "coco.safetensors")
    labels = scenes / "annotations"
    images = {"data": str(labels / "train.json"), "val": str(labels / "val.json")}
    kept = {key: value for key, value in FINETUNE.items() if key != "trunk.fpn_channels" and "width" not in key}
    settings = {**kept, "iterations": 0}
    run = finetune(**images, out=str(tmp_path / "run"), weights=str(tmp_path / "coco.safetensors"), **settings)  # type: ignore[arg-type]
    built = load(run.recipe_file, FinetuneRecipe).trunk
    assert (built.fpn_norm, built.box_head, built.box_head_width, built.fpn_channels) == (False, "2fc", 24, 16)
    assert "RPN ok, predictor 0 of 10 classes by name" in run.summary["weights"]
    assert run.summary["loaded"]["RPN"] == 1


def test_a_whole_backbone_fills_a_c4_detector_with_its_head(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    settings = {**SHORT, "iterations": 1, "detector.kind": "mask_rcnn", "trunk.neck": "c4", "freeze": 2}
    run = finetuning(scenes, tmp_path / "run", str(pretrained.path), **settings)
    assert "100.0% of parameters; backbone ok, RoI head ok" in run.summary["weights"]
    assert set(run.summary["scores"]) == {"bbox", "segm"} and load(run.recipe_file, FinetuneRecipe).trunk.neck == "c4"
    assert with_trunk_of(FinetuneRecipe(), str(run.path)).trunk.neck == "c4"
    c4 = FinetuneRecipe(trunk=TrunkConfig(neck="c4"))
    assert with_trunk_of(c4, str(pretrained.path)).trunk.neck == "c4"


def test_corrected_second_try_works_after_a_wrong_first(scenes: Path, pretrained: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no such file or run"):
        finetuning(scenes, out, str(pretrained.path) + "-typo", **SHORT)
    with pytest.raises(UserError, match="choose the trunk that the file is of"):
        finetuning(scenes, out, str(pretrained.weights), **{**SHORT, "trunk.backbone": "resnet34"})
    with pytest.raises(UserError, match=r"label_count: 2; .*label_fraction 0\.5"):
        finetuning(scenes, out, label_count=2, label_fraction=0.5, **SHORT)
    with pytest.raises(UserError, match=r"label_count: 9; expected 1 to 4"):
        finetuning(scenes, out, label_count=9, **SHORT)
    with pytest.raises(UserError, match=r"step \d: .*loss.* = (nan|inf).*Lower optim\.lr"):
        finetuning(scenes, out, **{**SHORT, "optim.lr": 1e30})
    assert finetuning(scenes, out, str(pretrained.weights), **SHORT).finished


def test_masks_are_learned_and_scored(scenes: Path, tmp_path: Path) -> None:
    run = finetuning(scenes, tmp_path / "run", **{**SHORT, "iterations": 2, "detector.kind": "mask_rcnn"})
    assert set(run.summary["scores"]) == {"bbox", "segm"}
    assert "loss_mask" in run.metrics


def test_smaller_shares_of_labels_are_parts_of_larger_ones(scenes: Path) -> None:
    data = read_labels(scenes / "annotations" / "train.json")

    def ids(**changes: object) -> set[object]:
        chosen = choose_labels(data, replace(FinetuneRecipe(), **changes))  # type: ignore[arg-type]
        return {image.image_id for image in chosen.images}

    nested = [ids(label_count=count) for count in (1, 2, 3, 4)]
    assert [len(part) for part in nested] == [1, 2, 3, 4]
    assert nested[0] < nested[1] < nested[2] < nested[3]
    assert ids(label_fraction=0.5) == nested[1] and ids(label_fraction=0.01) == nested[0]
    assert len({tuple(sorted(ids(label_count=2, label_seed=seed))) for seed in range(8)}) > 1
    with pytest.raises(UserError, match="label_fraction"):
        ids(label_fraction=0.0)


def test_schedule_is_detectron2s_at_any_length() -> None:
    full = FinetuneSchedule.of(FinetuneRecipe(iterations=90_000), 118_000)
    assert (full.steps, full.warmup, full.milestones) == (90_000, 1000, (60_000, 80_000))
    assert [full.learning_rate(step) for step in (0, 500, 1000, 60_000, 80_000)] == pytest.approx(
        [2e-5, 0.01001, 0.02, 0.002, 0.0002]
    )
    few = FinetuneSchedule.of(FinetuneRecipe(epochs=3, batch_size=4), 10)
    assert (few.steps, few.warmup) == (8, 0) and few.peak == pytest.approx(0.005)
    assert FinetuneSchedule.of(FinetuneRecipe(epochs=0.1), 10).steps == 1
    sparse = FinetuneSchedule.of(FinetuneRecipe(optim=FinetuneOptim(warmup_start=0.01), iterations=270_000), 118_000)
    assert [sparse.learning_rate(step) for step in (0, 500, 1000)] == pytest.approx([2e-4, 0.0101, 0.02])


def test_schedule_is_mmsegmentations_polynomial_where_asked() -> None:
    optim = FinetuneOptim(lr=0.01, warmup_iterations=0, schedule="polynomial")
    full = FinetuneSchedule.of(FinetuneRecipe(optim=optim, iterations=20_000), 10_582)
    rates = [full.learning_rate(step) for step in (0, 5_000, 19_999)]
    assert rates == pytest.approx([1e-4 + 0.0099 * (1 - step / 20_000) ** 0.9 for step in (0, 5_000, 19_999)])
    half = FinetuneSchedule.of(FinetuneRecipe(optim=optim, iterations=20_000, batch_size=8), 10_582)
    assert half.learning_rate(5_000) == pytest.approx(rates[1] / 2)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_has_every_trainable_parameter_once(name: str) -> None:
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    freeze(trunk, 2)
    detector = FasterRCNNConfig().build(trunk, 3)
    settings = FinetuneOptim(name=name, layer_decay=0.5, weight_decay=0.01)  # type: ignore[arg-type]
    optimizer = make_detector_optimizer(detector, trunk, settings)
    places = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(places)
    assert set(places) == {id(p) for p in detector.parameters() if p.requires_grad}
    scales = {
        part: places[id(next(module.parameters()))]["lr_scale"]
        for part, module in trunk.parts.items()
        if part != "backbone"
    }
    body = trunk.backbone.body
    assert scales == {"FPN": 1.0, "RoI head": 1.0}
    assert [places[id(body[f"layer{i}"][0].conv1.weight)]["lr_scale"] for i in (2, 3, 4)] == [0.125, 0.25, 0.5]
    assert all(
        group["weight_decay"] == (0.01 if p.ndim > 1 else 0)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    assert not any(id(p) in places for p in [*body.conv1.parameters(), *body.layer1.parameters()])


def test_group_norm_of_a_pretraining_is_kept(scenes: Path, tmp_path: Path) -> None:
    pretrained = pretraining(
        scenes, tmp_path / "run", "byol", epochs=1, checkpoint_every=9, **{"trunk.norm": "group", "optim.base_lr": 0.0}
    )
    assert with_trunk_of(FinetuneRecipe(), str(pretrained.path)).trunk.norm == "group"
    assert with_trunk_of(FinetuneRecipe(), str(pretrained.weights)).trunk.norm == "group"
    assert with_trunk_of(FinetuneRecipe(), None) == FinetuneRecipe()
    assert torch.isfinite(torch.tensor(pretrained.metrics["loss"][1])).all()


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.weights)


def test_a_batch_in_parts_takes_the_same_steps(scenes: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "iterations": 1, "batch_size": 4, "trunk.norm": "frozen"}
    whole = finetuning(scenes, tmp_path / "whole", **settings)
    parts = finetuning(scenes, tmp_path / "parts", **settings, accumulate=2)
    ours, theirs = (run.metrics for run in (parts, whole))
    assert ours.keys() == theirs.keys() and ours["learning_rate"] == theirs["learning_rate"]
    for name in ("loss_classifier", "loss_objectness"):  # samples of anchors and boxes are drawn image by image
        assert ours[name][1] == pytest.approx(theirs[name][1], rel=1e-2)
    assert parts.summary["steps"] == 1
    with pytest.raises(UserError, match=r"accumulate: 3; expected a divisor of batch_size, 4"):
        finetuning(scenes, tmp_path / "thirds", **settings, accumulate=3)
    with pytest.raises(UserError, match=r"^accumulate: expected 1 or more, got 0$"):
        finetuning(scenes, tmp_path / "none", **settings, accumulate=0)


def test_a_finished_run_is_not_that_of_changed_weights_names_or_masks(
    scenes: Path, pretrained: Run, tmp_path: Path
) -> None:
    weights, labels = tmp_path / "start.safetensors", tmp_path / "train.json"
    tensors, content = load_file(pretrained.weights), json.loads((scenes / "annotations" / "train.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(scenes / "images" / "train" / image["file_name"])

    def learn() -> Run:
        save_file(tensors, weights)
        labels.write_text(json.dumps(content))
        settings = {**FINETUNE, "data": str(labels), "val": str(labels), "weights": str(weights), "iterations": 1}
        return finetune(out=str(tmp_path / "run"), quiet=True, **settings, **{"detector.kind": "mask_rcnn"})

    learn()
    learn()
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    with pytest.raises(UserError, match=r"other settings \(weights_sha256 was"):
        learn()
    tensors = load_file(pretrained.weights)
    first = content["annotations"][0]
    before, first["segmentation"] = first["segmentation"], content["annotations"][1]["segmentation"]
    with pytest.raises(UserError, match=r"other settings \(targets was"):
        learn()
    first["segmentation"] = before
    content["categories"][0]["name"] += "?"
    with pytest.raises(UserError, match=r"other settings \(targets was"):
        learn()


def test_labelled_images_that_cannot_be_used_are_said(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = json.loads((scenes / "annotations" / "train.json").read_text())
    for image in labels["images"]:
        image["file_name"] = str(scenes / "images" / "train" / image["file_name"])

    def learn(name: str, turned: int) -> Run:
        content = copy.deepcopy(labels)
        for image in content["images"][:turned]:  # as cameras have it that note how they were held
            image["height"] *= 2
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        settings = {**FINETUNE, "data": str(tmp_path / f"{name}.json"), "out": str(tmp_path / name), "iterations": 4}
        return finetune(val=str(scenes / "annotations" / "val.json"), **settings)

    skipped = learn("one", 1).summary["skipped_in_training"]
    first = labels["images"][0]
    reason = f"is {first['width']} x {first['height']} px, its labels are for {first['width']} x {2 * first['height']}"
    assert skipped == {first["file_name"]: reason}
    assert "1 labelled images could not be read and were left out:\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"{reason}; none of the first 4 images can be used: check the data$"):
        learn("all", 4)


def test_precise_norms_change_the_saved_statistics_and_no_weight(scenes: Path, tmp_path: Path) -> None:
    """Here with synchronised norms in one process, two frozen stages, parts and crops."""
    settings = {**SHORT, "iterations": 2, "trunk.norm": "sync", "freeze": 2, "random_crop": True, "min_size": (64,)}
    moving, precise, again = (
        tensors(finetuning(scenes, tmp_path / str(number), accumulate=2, precise_norms=batches, **settings))
        for number, batches in enumerate((0, 3, 3))
    )
    assert moving.keys() == precise.keys() and all(torch.equal(value, again[name]) for name, value in precise.items())
    changed = {name for name, value in precise.items() if not torch.equal(value, moving[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    frozen = ("backbone.body.bn1.", "backbone.body.layer1.")
    assert not any(name.startswith(frozen) for name in changed)
    norms = {name.rpartition(".")[0] for name in precise if name.endswith("running_mean")}
    assert {name.rpartition(".")[0] for name in changed} == {
        name for name in norms if not f"{name}.".startswith(frozen)
    }


@pytest.mark.parametrize(
    ("backbone", "neck"),
    [("resnet18", "fpn"), ("resnet18", "c4"), ("mobilenet_v2", "fpn"), ("timm:regnetx_002", "fpn")],
)
def test_a_frozen_body_is_the_same_to_the_bit_afterwards(
    backbone: str, neck: str, scenes: Path, tmp_path: Path
) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed: pip install 'boxless[timm]'")
    torch.manual_seed(3)
    trunk = Trunk(TrunkConfig(backbone, fpn_channels=16, box_head_width=32, neck=neck))  # type: ignore[arg-type]
    before = {name: value for name, value in trunk.state_dict().items() if "fpn" not in name}
    for name, value in before.items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    save_file(trunk.state_dict(), tmp_path / "weights.safetensors")
    settings = {"iterations": 2, "freeze": 5, "precise_norms": 1, "trunk.backbone": backbone, "trunk.neck": neck}
    run = finetuning(scenes, tmp_path / "run", str(tmp_path / "weights.safetensors"), **{**SHORT, **settings})
    after = {name.removeprefix("roi_heads."): value for name, value in tensors(run).items()}
    body = [name for name in before if name.startswith(("backbone.body.", "box_head.layer4."))]
    assert len(body) > 100 and all(torch.equal(after[name], before[name]) for name in body)


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos", "detr"])
def test_shots_are_drawn_learned_and_written_down(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    width = {"trunk.fpn_channels": 32} if kind == "fcos" else {}
    own = {key: value for key, value in FINETUNE.items() if kind == "faster_rcnn" or "detector." not in key}
    labels, data = scenes / "annotations", read_labels(scenes / "annotations" / "train.json")
    settings = {**own, **width, "iterations": 1, "detector.kind": kind, "shots": 1}
    run = finetune(str(labels / "train.json"), str(labels / "val.json"), str(tmp_path / "run"), **settings)
    said, written = capsys.readouterr().err, json.loads((run.path / "labels.json").read_text())
    there = {name for image in data.images for name in np.array(data.classes)[image.labels]}
    assert (written["choice"], written["shots"]) == ("shots", 1)
    assert {box["class"] for box in written["boxes"]} == there and len(written["boxes"]) == len(there)
    assert {box["image_id"] for box in written["boxes"]} == set(written["images"])
    assert written["objects"] == {name: int(name in there) for name in data.classes}
    assert written["boxes_sha256"] in said and ("ignored" in said) == (kind != "detr") and "shots 1: " in said
    with pytest.raises(UserError, match=r"label_list .*labels.json: chooses boxes.*--shots 1 --label_seed 0"):
        finetuning(scenes, tmp_path / "other", label_list=str(run.path / "labels.json"))


@pytest.mark.parametrize(
    "other", [{"label_count": 2}, {"label_fraction": 0.5}, {"label_list": "x"}, {"label_choice": "first"}]
)
def test_shots_beside_another_choice_are_refused(scenes: Path, other: dict[str, object]) -> None:
    data = read_labels(scenes / "annotations" / "train.json")
    with pytest.raises(UserError, match=r"^shots: 2; chooses boxes by class: leave out label_fraction"):
        choose_labels(data, replace(FinetuneRecipe(shots=2), **other))  # type: ignore[arg-type]


def _changed(scenes: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """A copy of labels with a change; the images are found by their full names."""
    coco = json.loads((scenes / "annotations" / name).read_text())
    paths = {image.image_id: image.path for image in read_labels(scenes / "annotations" / name).images}
    for image in coco["images"]:
        image["file_name"] = str(paths[image["id"]])
    change(coco)
    (folder / name).write_text(json.dumps(coco))
    return str(folder / name)


def test_validation_labels_without_an_object_to_measure_are_refused(scenes: Path, tmp_path: Path) -> None:
    def spell(coco: dict[str, Any]) -> None:
        for category in coco["categories"]:
            category["name"] = f" {category['name']}".upper()

    train = str(scenes / "annotations" / "train.json")
    first = read_labels(train).classes[0]
    val = _changed(scenes, tmp_path, "val.json", spell)
    near = rf"its own classes are .*{first.upper()}.*nearly alike: .*{first.upper()} / {first}"
    with pytest.raises(UserError, match=rf"^{val}: no object of the detector's classes \({first}.*{near}"):
        finetune(train, val, str(tmp_path / "run"), **{**FINETUNE, "iterations": 1})
    val = _changed(scenes, tmp_path, "val.json", lambda coco: coco.update(annotations=[]))
    with pytest.raises(UserError, match=rf"^{val}: no object is labelled in its \d+ images"):
        finetune(train, val, str(tmp_path / "run"), **{**FINETUNE, "iterations": 1})
    assert not (tmp_path / "run").exists()


def test_a_class_spelled_differently_in_part_is_named(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = str(scenes / "annotations" / "train.json")
    classes = read_labels(train).classes
    shown = {int(label) for image in read_labels(scenes / "annotations" / "val.json").images for label in image.labels}
    name = classes[min(shown)]

    def spell(coco: dict[str, Any]) -> None:
        next(category for category in coco["categories"] if category["name"] == name).update(name=name.upper() + "_")

    validation_labels(_changed(scenes, tmp_path, "val.json", spell), classes, quiet=False)
    assert f"nearly alike: {name.upper()}_ / {name}; spell them alike" in capsys.readouterr().err


def test_a_choice_that_misses_a_class_says_so(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = (scenes / "annotations" / f"{name}.json" for name in ("train", "val"))
    data, shown = read_labels(train), {int(label) for image in read_labels(val).images for label in image.labels}
    label = min(shown)
    name = data.classes[label]
    number, first = data.category_ids[label], data.images[0].image_id

    def only_in_the_first(coco: dict[str, Any]) -> None:
        others = [a for a in coco["annotations"] if a["image_id"] != first and a["category_id"] != number]
        own = [{**a, "category_id": number} for a in coco["annotations"] if a["image_id"] == first]
        coco["annotations"] = own + others

    labels = _changed(scenes, tmp_path, "train.json", only_in_the_first)
    (tmp_path / "few.txt").write_text("\n".join(str(image.image_id) for image in data.images[1:]))
    settings = {**FINETUNE, "iterations": 1, "label_list": str(tmp_path / "few.txt")}
    run = finetune(labels, str(val), str(tmp_path / "run"), **settings)
    said = next(line for line in capsys.readouterr().err.splitlines() if "none of the 3 chosen images shows" in line)
    assert f"{name} (in 1 of all 4)" in said
    assert name in run.summary["classes_without_labels"]
    assert json.loads((run.path / "labels.json").read_text())["objects"][name] == 0


@pytest.mark.parametrize(("first", "expected"), [(0, [True] * 3 + [False] * 3), (4, [False] * 2)])
def test_augmentation_closes_at_its_step(
    first: int, expected: list[bool], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"augment": AugmentConfig(color=1.0, until=0.5), "iterations": 6, "batch_size": 2, "workers": 0}
    data = read_labels(str(scenes / "annotations" / "train.json"), "train")
    task = DetectTask(FinetuneRecipe(min_size=(64,), **changes), make_fabric("32-true"), tmp_path, data, data)
    augmented: list[bool] = []
    monkeypatch.setattr(detection, "recolor", lambda image, *_: augmented.append(True) or image)
    seen = []
    for _ in task.batches(first, 6):
        seen.append(bool(augmented))
        augmented.clear()
    assert seen == expected
