"""Self-training in every detector of boxes, its guards, and runs that stop and go on."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import FINETUNE, finetuning
from test_resume import killed_then_continued, same_results

from boxless import finetune
from boxless.data.annotations.read import read_labels
from boxless.data.open import index_images
from boxless.detectors.all import DETECTORS
from boxless.errors import UserError
from boxless.methods.self_training import Finds
from boxless.recipes.load import load
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.tasks.labels import validation_labels
from boxless.tasks.self_train import SelfTrainTask
from boxless.training.device import make_fabric
from boxless.training.logger import MetricLogger

KINDS = [kind for kind, config in DETECTORS.items() if config.targets not in ("classes", "keypoints")]
SMALL: dict[str, dict[str, Any]] = {
    "fcos": {"trunk.fpn_channels": 32},
    "sparse_rcnn": {"detector.learned_proposals": 20, "trunk.fpn_channels": 32},
    "detr": {"trunk.transformer.width": 32, "trunk.transformer.queries": 20},
    "rt_detr": {"trunk.fpn_channels": 32, "detector.queries": 20, "detector.layers": 2},
}
"""Other sizes of detectors that need or allow them."""


def made(scenes: Path, out: Path, kind: str = "faster_rcnn", **changes: Any) -> SelfTrainTask:
    """A task that has been built, on the scenes."""
    shared = {key: value for key, value in FINETUNE.items() if key != "recipe" and not key.startswith("detector.")}
    recipe = override(load("faster-rcnn-fpn", FinetuneRecipe), {"detector.kind": kind})
    recipe = override(recipe, {**shared, **SMALL.get(kind, {}), **changes})
    data = read_labels(scenes / "annotations" / "train.json")
    val = validation_labels(str(scenes / "annotations" / "val.json"), data.classes, quiet=True)
    images = index_images(scenes / "images" / "unlabelled", out / "cache")
    out.mkdir(exist_ok=True)
    task = SelfTrainTask(recipe, make_fabric("32-true"), out, data, val, None, True, images)
    task.build()
    task.module.train()
    return task


def taught(task: SelfTrainTask) -> None:
    """Let the teacher find one box in each view, of the first class."""
    box = Finds(torch.tensor([[10.0, 10.0, 60.0, 60.0]]), torch.tensor([1.0]), torch.tensor([1]))
    task._teach = lambda batch: iter([(box, torch.tensor([True]))] * len(batch))  # type: ignore[method-assign]
    task.ranking.rates[0] = 1.0
    task.ranking.add(torch.zeros(0, 4), 10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_detector_learns_from_its_own_finds(kind: str, scenes: Path, tmp_path: Path) -> None:
    task = made(scenes, tmp_path, kind)
    batch = next(iter(task._views(task.begin, task.begin + 1)))
    teacher = {name: value.clone() for name, value in task.average.state_dict().items()}
    buffers = {name: value.clone() for name, value in task.module.named_buffers() if "running" in name}
    found = list(task._teach(batch))
    assert len(found) == len(batch) and all(len(finds.boxes) == len(certain) for finds, certain in found)
    assert not any(finds.boxes.requires_grad for finds, _ in found)
    assert task.module.training and getattr(task.module, "roi_heads", task.module).score_thresh == 0.05
    taught(task)
    optimizer = torch.optim.Adam(task.module.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        terms = task.loss(task.module, batch, task.steps)
        assert terms["loss"].item() == pytest.approx(2 * terms["loss_unlabelled"].item())
        losses.append(terms["loss_unlabelled"].item())
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    if kind == "rt_detr":  # its loss of classes grows with the boxes' overlap, which nothing holds fast here
        assert losses[-1] != losses[0]
    else:
        assert min(losses) < 0.9 * losses[0]
    assert all(torch.equal(value, teacher[name]) for name, value in task.average.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in task.module.named_buffers() if name in buffers)
    assert not any(value.requires_grad for value in task.average.state_dict().values())


def test_images_without_a_find_that_counts_teach_nothing(scenes: Path, tmp_path: Path) -> None:
    task = made(scenes, tmp_path)
    batch = next(iter(task._views(task.begin, task.begin + 1)))
    taught(task)
    assert task.loss(task.module, batch, task.steps)["loss"] > 0
    task.muted = [0]
    terms = task.loss(task.module, batch, task.steps)
    terms["loss"].backward()
    assert terms["loss"] == 0 and all(p.grad is None or not p.grad.any() for p in task.module.parameters())


def test_the_teacher_moves_once_a_step_and_counts_what_it_found(scenes: Path, tmp_path: Path) -> None:
    task = made(scenes, tmp_path, ema=1.0)
    taught(task)
    before = {name: value.clone() for name, value in task.average.state_dict().items()}
    batch = next(iter(task._views(task.begin, task.begin + 1)))
    task.loss(task.module, batch, task.begin)
    with torch.no_grad():
        for value in task.module.parameters():
            value.add_(1)
    task.after_step(task.begin, MetricLogger(None, 0, 9, 2))
    moved = {name: value - before[name] for name, value in task.average.state_dict().items()}
    names = [name for name, _ in task.module.named_parameters()]
    assert all(torch.allclose(moved[name], torch.tensor(1 / (task.begin + 1)), atol=1e-5) for name in names)
    seen = 10 + len(batch)
    assert task.ranking.images == seen and task.ranking.labels_per_image()[0] == pytest.approx(len(batch) / seen)


def test_a_fall_of_ap_ends_self_training_and_takes_the_best_weights_back(scenes: Path, tmp_path: Path) -> None:
    task = made(scenes, tmp_path)
    first = next(task.module.parameters())
    kept = first.detach().clone()
    task._conclude({"step": 4, "AP": 0.5, "right": {0: 0.9, 1: 0.2}})
    assert task.teaching and task.muted == [1] and "(20% right)" in task.remarks[0]
    with torch.no_grad():
        first.add_(1)
    task._conclude({"step": 6, "AP": 0.49, "right": {}})
    assert task.teaching and task.muted == [] and not torch.equal(first, kept)
    task._conclude({"step": 8, "AP": 0.4, "right": {}})
    assert not task.teaching and torch.equal(first, kept) and "50.0% at step 4 to 40.0%" in task.remarks[-1]
    batch = next(iter(task.batches(4, 8)))
    assert len(batch) == task.share


def test_images_of_another_kind_are_noticed(scenes: Path, tmp_path: Path) -> None:
    task = made(scenes, tmp_path)
    task.ranking.add(torch.zeros(0, 4), task.ranking.window)
    task._conclude({"step": 4, "AP": 0.5, "right": {}})
    assert "100% of the unlabelled images nothing is found" in task.remarks[0]


def unlabelled(scenes: Path, out: Path, **changes: Any) -> Run:
    where = str(scenes / "images" / "unlabelled")
    return finetuning(scenes, out, unlabelled=where, **{"self_training.burn_in": 0.3, "evaluate_every": 3, **changes})


def test_killed_self_training_goes_on_bit_for_bit(scenes: Path, tmp_path: Path) -> None:
    more = {"iterations": 14, "ema": 0.5, "augment.zoom": (0.5, 2.0)}
    undisturbed = unlabelled(scenes, tmp_path / "whole", **more)
    continued = killed_then_continued(unlabelled, scenes, tmp_path / "killed", **more)
    same_results(continued, undisturbed)
    assert undisturbed.summary["self_training"]["from_step"] == 4
    assert undisturbed.summary["self_training"]["images"] == 8
    plain = finetuning(scenes, tmp_path / "plain", **more)
    assert plain.metrics["val/AP"][1][0] == undisturbed.metrics["val/AP"][1][0]  # the burn-in is the same


def test_wrong_inputs_are_refused_in_words(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no such file or folder"):
        finetuning(scenes, out, unlabelled=str(scenes / "nothing"))
    with pytest.raises(UserError, match=r"self_training\.burn_in: expected 0 up to"):
        unlabelled(scenes, out, **{"self_training.burn_in": 1.5})
    labels = {name: str(scenes / "annotations" / f"{name}.json") for name in ("train", "val")}
    run = partial(finetune, labels["train"], labels["val"], str(out), unlabelled=str(scenes / "images"))
    with pytest.raises(UserError, match=r"detector\.kind=fcn learns pixels"):
        run(recipe="fcn-r50-voc")


def few_of(data: Path, folder: Path) -> Path:
    """A VOC folder of a few images of another one."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to(data / name)
    for name, every in (("train", 59), ("val", 30)):
        lines = (data / "ImageSets" / "Main" / f"{name}.txt").read_text().splitlines()
        (lists / f"{name}.txt").write_text("\n".join(lines[::every]) + "\n")
    return folder


def test_the_command_on_steel(shared_data: Path, tmp_path: Path) -> None:
    steel = few_of(shared_data / "neu-det", tmp_path / "steel")
    settings = {key: value for key, value in FINETUNE.items() if key not in ("iterations", "evaluate_every")}
    run = finetune(
        f"{steel}:train",
        f"{steel}:val",
        str(tmp_path / "run"),
        unlabelled=[f"{steel}:train"],
        quiet=True,
        iterations=4,
        label_count=12,
        evaluate_every=100,
        **{**settings, "self_training.burn_in": 0.5},
    )
    used = run.summary["self_training"]
    assert used["images"] == 24 and used["from_step"] == 2 and used["boxes_per_labelled_box"].keys() >= {"all"}
    assert {"loss_unlabelled", "loss_classifier"} <= run.metrics.keys()
    assert run.inputs["unlabelled"]
