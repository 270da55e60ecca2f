"""Plain bodies in the names of neighbouring libraries load whole, and what would load in part or wrong is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import boxless
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.weights import load_trunk

Tensors = dict[str, Tensor]
_ZERO = torch.zeros(2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(7)
    model = resnet18(weights=None)
    model(torch.rand(2, 3, 32, 32))
    return model.eval()


def trunk(norm: str = "batch", backbone: str = "resnet18") -> Trunk:
    torch.manual_seed(0)
    return Trunk(TrunkConfig(backbone, norm=norm, neck="none")).eval()  # type: ignore[arg-type]


def body_of(network: nn.Module) -> Tensors:
    return {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def other(tensors: Tensors) -> Tensors:
    return {key: value + 1 for key, value in tensors.items()}


def _sequential(network: nn.Module) -> Tensors:
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


LAYOUTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sequential": ("Lightly", lambda n: {"state_dict": behind("backbone.", _sequential(n)) | {"head.0.bias": _ZERO}}),
    "sequential alone": ("Lightly", _sequential),
    "student and teacher": (
        "LightlyTrain",
        lambda n: {
            "state_dict": behind("student_embedding_model.wrapped_model._model.", other(body_of(n)))
            | behind("teacher_embedding_model.wrapped_model._model.", body_of(n))
        },
    ),
    "VISSL": (
        "VISSL",
        lambda n: {"classy_state_dict": {"base_model": {"model": {"trunk": behind("_feature_blocks.", body_of(n))}}}},
    ),
    "two encoders": (
        "MMSelfSup",
        lambda n: {"state_dict": behind("encoder_k.0.", other(body_of(n))) | behind("encoder_q.0.", body_of(n))},
    ),
    "online and target": (
        "byol-pytorch",
        lambda n: behind("target_encoder.net.", other(body_of(n))) | behind("online_encoder.net.", body_of(n)),
    ),
    "compiled": ("", lambda n: behind("_orig_mod.", body_of(n))),
    "compiled in parallel": ("", lambda n: behind("_orig_mod.module.", body_of(n))),
    "compiled inside": ("", lambda n: behind("model.backbone._orig_mod.", body_of(n))),
    "average": (
        "",
        lambda n: {"ema": {"module": behind("backbone.", body_of(n)), "updates": 9}, "model": other(body_of(n))},
    ),
    "net": ("", lambda n: {"net": body_of(n), "epoch": 3}),
    "any prefix": ("", lambda n: behind("some.thing.here.", body_of(n))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_those_of_the_source(layout: str, network: Any, tmp_path: Path) -> None:
    whose, write = LAYOUTS[layout]
    torch.save(write(network), tmp_path / "file.pth")
    loaded = trunk()
    report = load_trunk(loaded, tmp_path / "file.pth", 0.99)
    assert report.shares == {"backbone": 1.0} and report.recognised.startswith(whose or "a backbone")
    image = torch.rand(1, 3, 64, 64)
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    expected = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    torch.testing.assert_close(list(loaded.backbone.body(image).values())[-1], expected, atol=1e-5, rtol=1e-5)


def test_two_bodies_that_nothing_tells_apart_are_split_by_hand(network: nn.Module, tmp_path: Path) -> None:
    torch.save(behind("left.", body_of(network)) | behind("right.", other(body_of(network))), tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"behind left\. and right\.; keep one with boxless convert --prefix left\."):
        load_trunk(trunk(), tmp_path / "two.pth", 0.99)
    one = boxless.convert(str(tmp_path / "two.pth"), str(tmp_path / "one.safetensors"), prefix="left.", quiet=True)
    assert load_trunk(trunk(), one, 0.99).shares == {"backbone": 1.0}
    with pytest.raises(UserError, match=r"no tensor of .* is behind it"):
        boxless.convert(str(tmp_path / "two.pth"), str(tmp_path / "none.safetensors"), prefix="up.", quiet=True)


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a stem for small images": (
        lambda own: own | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
        "conv1.weight, of another",
    ),
    "five bands": (lambda own: own | {"conv1.weight": torch.zeros(64, 5, 7, 7)}, "conv1.weight, of another shape"),
    "no stem": (lambda own: {k: v for k, v in own.items() if k != "conv1.weight"}, "conv1.weight, not in the file"),
    "parameters alone": (lambda own: {k: v for k, v in own.items() if "running" not in k}, "not their statistics"),
    "NaN": (lambda own: own | {"bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias has 64 of 64 numbers that are NaN"),
    "infinite": (lambda own: own | {"layer1.0.bn1.running_var": torch.full((64,), torch.inf)}, "NaN or infinite"),
}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", WRONG)
def test_a_body_is_loaded_whole_or_not_at_all(name: str, norm: str, network: nn.Module, tmp_path: Path) -> None:
    change, message = WRONG[name]
    torch.save(change(body_of(network)), tmp_path / "file.pth")
    target = trunk(norm)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_trunk(target, tmp_path / "file.pth", 0.99)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_group_norms_do_not_fill_batch_norms(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet50_gn", num_classes=0).state_dict(), tmp_path / "gn.pth")
    with pytest.raises(UserError, match=r"set trunk\.norm to group"):
        load_trunk(trunk(backbone="resnet50"), tmp_path / "gn.pth", 0.99)
    assert load_trunk(trunk("group", "resnet50"), tmp_path / "gn.pth", 0.99).shares == {"backbone": 1.0}


def test_a_grey_stem_sees_grey_images_as_it_did(network: Any, tmp_path: Path) -> None:
    grey = body_of(network)["conv1.weight"].sum(1, keepdim=True)
    torch.save(body_of(network) | {"conv1.weight": grey}, tmp_path / "grey.pth")
    loaded = trunk()
    report = load_trunk(loaded, tmp_path / "grey.pth", 0.99)
    assert "spread over three" in str(report)
    image = torch.rand(1, 1, 32, 32)
    given = torch.nn.functional.conv2d(image.expand(-1, 3, -1, -1), loaded.backbone.body.conv1.weight)
    torch.testing.assert_close(given, torch.nn.functional.conv2d(image, grey), atol=1e-4, rtol=1e-4)


def test_positions_of_another_resolution_are_resampled(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=384)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    loaded = trunk(backbone="timm:vit_tiny_patch16_224")
    report = load_trunk(loaded, tmp_path / "vit.pth", 0.99)
    assert report.shares["backbone"] == 1 and "577 positions in the file, resampled to 197" in str(report)
    positions = loaded.backbone.body.model.pos_embed
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, [14, 14])
    torch.testing.assert_close(positions, expected)
