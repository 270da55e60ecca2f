import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

import boxless
from boxless.detectors.trunk import LEVELS, Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.methods.soco import SoCoConfig
from boxless.recipes.load import describe, load
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.detect import load_detector


def run_readme(file: Path, monkeypatch) -> torch.nn.Module:
    """The model that the code in the text beside a file makes."""
    text = file.with_name(f"{file.name}.README.txt").read_text()
    monkeypatch.chdir(file.parent)
    names: dict = {}
    exec(text[text.index("import math") :], names)
    return names["model"].eval()


def trunk_of(run: str) -> Trunk:
    trunk = Trunk(load(Path(run) / "recipe.yaml", PretrainRecipe).trunk)
    trunk.load_state_dict(load_file(Path(run) / "weights.safetensors"))
    return trunk.eval()


def same(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def stages(resnet: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
    return [x := getattr(resnet, f"layer{number}")(x) for number in (1, 2, 3, 4)]


@pytest.fixture
def image(digits) -> torch.Tensor:
    """(3, 64, 64), 0..1."""
    with Image.open(digits.images / "000000.jpg") as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def c5(trunk: Trunk, image: torch.Tensor) -> torch.Tensor:
    maps = trunk.backbone.body(image)
    return trunk.box_head.maps(maps["0"]) if trunk.config.neck == "c4" else maps["3"]


BODIES = ("swin_t", "mobilenet_v2", "timm:regnetx_002")


@pytest.mark.parametrize("settings", [{"neck": "c4"}, *({"backbone": name} for name in BODIES)], ids=["c4", *BODIES])
def test_other_backbones_give_the_same_too_and_their_detectors_are_refused(tmp_path, monkeypatch, settings, image):
    config = TrunkConfig(**{"backbone": "resnet18", "fpn_channels": 16, "box_head_width": 32, **settings})
    if config.backbone.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed: pip install 'boxless[timm]'")
    torch.manual_seed(0)
    trunk = Trunk(config).eval()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(describe(PretrainRecipe(SoCoConfig(), trunk=config), "soco-r50-fpn"))
    save_file(trunk.state_dict(), tmp_path / "run" / "weights.safetensors")
    file = boxless.export(str(tmp_path / "run"), str(tmp_path / "body.safetensors"), quiet=True)
    with torch.no_grad():
        same(run_readme(file, monkeypatch)(image[None]), c5(trunk, image[None]).mean((2, 3)))
    for to, suffix in (("torchvision-detector", "safetensors"), ("detectron2", "pkl"), ("mmdetection", "pth")):
        with pytest.raises(UserError, match=r"^[^\n]*--to torchvision-backbone[^\n]*$"):
            boxless.export(str(tmp_path / "run"), str(tmp_path / f"all.{suffix}"), to, quiet=True)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_a_backbone_gives_the_same_features_in_torchvision(tmp_path, monkeypatch, norm, image):
    config = TrunkConfig(backbone="resnet18", norm=norm, fpn_channels=16, box_head_width=32)
    trunk = Trunk(config)
    generator = torch.Generator().manual_seed(0)
    for value in trunk.state_dict().values():  # no norm keeps its first values, so that none may be left out
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(describe(PretrainRecipe(SoCoConfig(), trunk=config), "soco-r50-fpn"))
    save_file(trunk.state_dict(), tmp_path / "run" / "weights.safetensors")
    file = boxless.export(str(tmp_path / "run"), str(tmp_path / "body.safetensors"), quiet=True)
    model = run_readme(file, monkeypatch)
    assert type(model) is torchvision.models.ResNet
    trunk.eval()
    with torch.no_grad():
        for given, expected in zip(stages(model, image[None]), trunk.backbone.body(image[None]).values(), strict=True):
            assert expected.abs().max() > 0.01
            same(given, expected)


def test_a_pretrained_trunk_fits_torchvisions_detector(runs, tmp_path, monkeypatch, image):
    file = boxless.export(runs.pretrained, str(tmp_path / "all.safetensors"), "torchvision-detector", quiet=True)
    model, trunk = run_readme(file, monkeypatch), trunk_of(runs.pretrained)
    with torch.no_grad():
        given, expected = model.backbone(image[None]), trunk.backbone(image[None])
        for level in LEVELS:
            assert expected[level].abs().max() > 0
            same(given[level], expected[level])
        pooled = torch.rand(3, 32, 7, 7)
        same(model.roi_heads.box_head(pooled), trunk.box_head(pooled))


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_a_detector_finds_the_same_in_torchvision(runs, tmp_path, monkeypatch, image, kind, capsys):
    out = str(tmp_path / "new" / "detector.safetensors")
    file = boxless.export(getattr(runs, kind), out, "torchvision-detector")
    assert f"{file}: " in capsys.readouterr().out
    model, (ours, classes, _) = run_readme(file, monkeypatch), load_detector(getattr(runs, kind))
    assert type(model) is {"boxes": torchvision.models.detection.FasterRCNN}.get(
        kind, torchvision.models.detection.MaskRCNN
    )
    assert f"10 {classes[9]}" in file.with_name(f"{file.name}.README.txt").read_text()
    with torch.no_grad():
        given, expected = model([image])[0], ours([image])[0]
    assert given.keys() == expected.keys() and len(expected["boxes"]) > 0
    for name in expected:
        torch.testing.assert_close(given[name], expected[name], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_exported_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        boxless.export(runs.boxes, str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match="would overwrite the run's own weights"):
        boxless.export(runs.boxes, f"{runs.boxes}/../boxes/weights.safetensors")
    with pytest.raises(UserError, match="to: onyx; expected torchvision-backbone, torchvision-detector, timm, "):
        boxless.export(runs.boxes, str(tmp_path / "a.safetensors"), "onyx")
    with pytest.raises(UserError, match="is not a run"):
        boxless.export(str(tmp_path), str(tmp_path / "a.safetensors"))
    copy = shutil.copytree(runs.boxes, tmp_path / "copy")
    (copy / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a safetensors file"):
        boxless.export(str(copy), str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "a.safetensors").exists()
