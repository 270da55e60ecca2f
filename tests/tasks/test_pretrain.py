import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import PRETRAIN, pretraining
from torchvision.models import mobilenet_v2, resnet18

from boxless import pretrain
from boxless.data import gpu_jpeg as device_decoding
from boxless.data.gpu_jpeg import Decoder, EncodedBatch
from boxless.data.unlabelled import Batch
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.weights import load_trunk
from boxless.methods.soco import SoCoConfig
from boxless.proposals.table import ProposalTable
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.runs.run import Run
from boxless.runs.weights import with_trunk_of
from boxless.tasks import pretrain as module
from boxless.tasks.pretrain import PretrainTask
from boxless.tasks.schedule import PretrainSchedule
from boxless.training.health import Health

SHORT = {"epochs": 2, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps of SoCo; one of the images is broken."""
    folder = tmp_path_factory.mktemp("soco")
    shutil.copytree(scenes / "images", folder / "images")
    (folder / "images" / "unlabelled" / "000003.jpg").write_bytes(b"nothing")
    return pretraining(folder, folder / "run", "soco", **SHORT)


def test_run_folder_has_what_the_layout_says(finished: Run) -> None:
    names = {path.name.split(".tfevents")[0] for path in finished.path.iterdir()}
    wanted = {"recipe.yaml", "environment.json", "metrics.csv", "checkpoints", "weights.safetensors", "summary.json"}
    assert names == {*wanted, "progress.json", "lock", "events.out"}
    summary = finished.summary
    assert (summary["method"], summary["steps"], summary["images_seen"]) == ("soco", 4, 16)
    assert summary["trains"] == ["backbone", "FPN", "RoI head"] and summary["health"] == "healthy"
    assert summary["init"] == "random weights"
    assert summary["skipped"] == {
        str(finished.path.parent / "images" / "unlabelled" / "000003.jpg"): "not an image in a known format"
    }
    assert json.loads((finished.path / "environment.json").read_text())["inputs"]["images"] == 8
    assert not list(finished.path.rglob("*.partial"))


def test_recipe_gives_the_same_run_back(finished: Run) -> None:
    recipe = load(finished.recipe_file, PretrainRecipe)
    assert (recipe.batch_size, recipe.epochs, recipe.method.name, recipe.trunk.backbone) == (4, 2, "soco", "resnet18")


def test_weights_load_into_the_recipes_trunk_in_full(finished: Run) -> None:
    trunk = Trunk(load(finished.recipe_file, PretrainRecipe).trunk)
    report = load_trunk(trunk, finished.weights, minimum=1.0)
    assert set(report.shares.values()) == {1.0} and not report.unused
    with safe_open(finished.weights, "pt") as file:
        assert not [key for key in file.keys() if "target" in key or "projector" in key]  # noqa: SIM118


def test_metrics_hold_loss_terms_rate_and_health(finished: Run) -> None:
    metrics = finished.metrics
    terms = {"v1_to_v2", "v2_to_v1", "v1_to_v3", "v3_to_v1"}
    assert {*terms, "loss", "learning_rate", "boxes_per_image", "health/spread", "health/rank"} <= metrics.keys()
    steps, losses = metrics["loss"]
    assert steps == [2, 3] and all(math.isfinite(loss) for loss in losses)
    assert losses == pytest.approx([sum(metrics[term][1][i] for term in terms) for i in range(2)], abs=1e-5)
    assert metrics["health/rank"][0] == [0, 3]
    peak = 1.0 * 4 / 256  # no step of this run warms up
    end = 1.25e-7 * 4 / 256  # 1e-6 at the batch of 2048
    rates = [end + (peak - end) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert metrics["learning_rate"][1] == pytest.approx([sum(rates[:3]) / 3, rates[3]])


def test_finished_run_is_not_computed_again(finished: Run) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in (finished.weights, finished.path / "metrics.csv")}
    tables = list(finished.path.parent.glob("proposals-*.parquet"))
    again = pretraining(finished.path.parent, finished.path, "soco", **SHORT)
    assert again.summary == finished.summary
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert len(tables) == 1 and tables == list(finished.path.parent.glob("proposals-*.parquet"))


def test_collapse_stops_the_run_unless_told_otherwise(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = Health(spread=0.0, rank=1.0, alignment=0.0, uniformity=0.0)
    monkeypatch.setattr(module, "measure", lambda online, target: flat)
    settings = {"epochs": 3, "health_every": 1, "checkpoint_every": 2}
    with pytest.raises(UserError, match="collapsed at step 0") as caught:
        pretraining(scenes, tmp_path / "run", "byol", **settings)
    assert "stop_on_collapse=false" in str(caught.value).splitlines()[0]
    assert not Run(tmp_path / "run").finished
    run = pretraining(scenes, tmp_path / "run", "byol", stop_on_collapse=False, **settings)
    assert run.summary["health"] == "collapsed at step 0" and run.summary["steps"] == 6


def test_start_from_other_weights(finished: Run, scenes: Path, tmp_path: Path) -> None:
    run = pretraining(scenes, tmp_path / "run", "byol", weights=str(finished.path), **{**SHORT, "optim.base_lr": 0.0})
    with safe_open(finished.weights, "pt") as old, safe_open(run.weights, "pt") as new:
        key = "backbone.body.layer3.0.conv1.weight"
        assert (old.get_tensor(key) - new.get_tensor(key)).abs().max() < 1e-5  # final_lr bounds the rate


def test_trunk_of_the_run_is_taken_over_but_for_the_neck(finished: Run) -> None:
    recipe = PretrainRecipe(SoCoConfig(), trunk=TrunkConfig("resnet34", "sync", "c4"))
    for init in (finished.path, finished.weights):
        trunk = with_trunk_of(recipe, str(init)).trunk
        assert (trunk.backbone, trunk.fpn_channels, trunk.norm, trunk.neck) == ("resnet18", 16, "sync", "c4")
    assert with_trunk_of(recipe, str(finished.path / "metrics.csv")) == recipe == with_trunk_of(recipe, None)


@pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")  # torchvision's, of decode_jpeg
def test_a_run_whose_device_decodes_is_that_of_a_processor(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scenes / "images", tmp_path / "images")
    image = tmp_path / "images" / "unlabelled" / "000003.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    settings = {**SHORT, "stop_on_collapse": False}
    with pytest.raises(UserError, match="decoder=gpu: needs a CUDA device"):
        pretraining(tmp_path, tmp_path / "there", "byol", decoder="gpu", **settings)
    for where in (module, device_decoding):
        monkeypatch.setattr(where, "require_gpu_decoder", lambda device: None)
    original = Decoder.__call__
    decoded = []

    def counted(self: Decoder, batch: EncodedBatch, device: torch.device) -> Batch:
        decoded.append(len(batch.jpegs))
        return original(self, batch, device)

    monkeypatch.setattr(Decoder, "__call__", counted)
    there = pretraining(tmp_path, tmp_path / "there", "byol", decoder="gpu", **settings)
    assert sum(decoded) == 14 and len(decoded) == 4  # of 2 * 8, one cut short in each epoch
    here = pretraining(tmp_path, tmp_path / "here", "byol", **settings)
    assert len(decoded) == 4
    assert there.summary["skipped"] == here.summary["skipped"] == {str(image): "truncated"}
    losses = [each.metrics["loss"][1] for each in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # pixels differ by a level


def test_first_step_has_the_files_weights_and_a_run_that_goes_on_reads_none(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = tmp_path / "resnet18.pth", {**SHORT, "stop_on_collapse": False}
    torch.manual_seed(7)
    weights = {key: value for key, value in resnet18(weights=None).state_dict().items() if "num_batches" not in key}
    torch.save(weights, file)
    undisturbed = pretraining(scenes, tmp_path / "whole", "byol", weights=str(file), **settings)
    at_first: dict[str, torch.Tensor] = {}
    original = PretrainTask.loss

    def interrupted(self: PretrainTask, module: torch.nn.Module, batch: Batch, step: int) -> Mapping[str, torch.Tensor]:
        if step == 0:
            at_first.update({key: value.clone() for key, value in self.module.state_dict().items()})
        if step == 3:  # a checkpoint lies at 3
            raise KeyboardInterrupt
        return original(self, module, batch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PretrainTask, "loss", interrupted)
        pretraining(scenes, tmp_path / "run", "byol", weights=str(file), **settings)
    for key, value in weights.items():
        if not key.startswith("fc."):
            assert torch.equal(at_first[f"encoder.{key}"], value)
            assert torch.equal(at_first[f"target_encoder.{key}"], value)
    torch.save({key: value + 1 for key, value in weights.items()}, file)
    run = pretraining(scenes, tmp_path / "run", "byol", weights=str(file), **settings)
    ours, theirs = load_file(run.weights), load_file(undisturbed.weights)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert run.summary["init"] == undisturbed.summary["init"] and "backbone ok, FPN new" in run.summary["init"]


def test_weights_that_do_not_fit_are_refused_before_boxes_are_made(scenes: Path, tmp_path: Path) -> None:
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "mobilenet.pth")
    with pytest.raises(
        UserError, match=r"its names are like features\.0\.0\.weight, expected like conv1\.weight; .*choose"
    ):
        pretraining(scenes, tmp_path / "run", "soco", weights=str(tmp_path / "mobilenet.pth"), **SHORT)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["mobilenet.pth"]


def test_images_of_equal_names_have_boxes_and_runs_of_their_own(scenes: Path, tmp_path: Path) -> None:
    settings = {**PRETRAIN, "method.small_size": 24, "proposals.method": "grid", "epochs": 1, "quiet": True}
    for camera in ("cam1", "cam2"):
        shutil.copytree(scenes / "images" / "unlabelled", tmp_path / camera)
    for image in (tmp_path / "cam2").iterdir():
        Image.open(image).resize((96, 48)).save(image)
    for camera in ("cam1", "cam2"):
        pretrain(str(tmp_path / camera), str(tmp_path / "runs" / camera), "soco-r50-fpn", **settings)
    tables = [ProposalTable.open(file) for file in (tmp_path / "runs").glob("proposals-*.parquet")]
    assert sorted(table.sizes[0].tolist() for table in tables) == [[80, 80], [96, 48]]
    with pytest.raises(UserError, match=r"holds a run with other settings \(content was"):
        pretrain(str(tmp_path / "cam2"), str(tmp_path / "runs" / "cam1"), "soco-r50-fpn", **settings)


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "unlabelled"
    folder.mkdir(parents=True)
    for row in range(3):
        (folder / f"{row}.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^[^\n]*0\.jpg: not an image[^\n]*3 in all[^\n]*$"):
        pretraining(tmp_path, tmp_path / "run", "byol", workers=1)


def test_plan_counts_in_epochs_and_scales_with_the_batch() -> None:
    optim = PretrainOptim(base_lr=0.3, reference_batch=256, warmup_epochs=10)
    plan = PretrainSchedule.of(PretrainRecipe(SoCoConfig(), optim=optim, epochs=100, batch_size=64), 1000)
    assert (plan.batch, plan.steps, plan.warmup) == (64, 1500, 150)
    assert plan.peak == pytest.approx(0.075)
    short = PretrainSchedule.of(PretrainRecipe(SoCoConfig(), optim=optim, epochs=2, batch_size=64), 640)
    assert (short.steps, short.warmup) == (20, 2)  # a tenth of the run at most
    assert PretrainSchedule.of(PretrainRecipe(SoCoConfig(), epochs=0.01), 10).steps == 1
    assert PretrainSchedule.of(PretrainRecipe(SoCoConfig(), batch_size=256), 10).batch == 10
    with pytest.raises(UserError, match="batch norms need at least 2"):
        PretrainSchedule.of(PretrainRecipe(SoCoConfig()), 1)
