import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18, resnet34, resnet50, swin_s, swin_t

from boxless.detectors.all import DETECTORS
from boxless.detectors.trunk import Norm, Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.files import read_tensors
from boxless.interop.weights import load_trunk, save_trunk

Tensors = dict[str, Tensor]


def trunk(seed: int = 0, norm: Norm = "batch", backbone: str = "resnet18") -> Trunk:
    torch.manual_seed(seed)
    return Trunk(TrunkConfig(backbone, norm=norm, fpn_channels=16, box_head_width=32))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet() -> Tensors:
    """A torchvision ResNet-18 with other weights and statistics than any new one."""
    torch.manual_seed(7)
    model = resnet18(weights=None)
    model(torch.rand(2, 3, 32, 32))
    return model.state_dict()


def body_equals(loaded: Trunk, tensors: Tensors) -> bool:
    ours = loaded.backbone.body.state_dict()
    return all(torch.equal(value, tensors[key]) for key, value in ours.items() if "num_batches" not in key)


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


LAYOUTS: dict[str, Callable[[Tensors], dict[str, object]]] = {
    "torchvision": lambda own: own,
    "DataParallel": lambda own: prefixed("module.", own),
    "MoCo": lambda own: {
        "epoch": 200,
        "state_dict": {
            **prefixed("module.encoder_k.", {key: value + 1 for key, value in own.items()}),
            **prefixed("module.encoder_q.", own),
            "module.queue": torch.zeros(2, 3),
        },
    },
    "DINO": lambda own: {
        "student": prefixed("module.backbone.", {key: value + 1 for key, value in own.items()}),
        "teacher": {**prefixed("backbone.", own), "head.mlp.0.weight": torch.zeros(2, 2)},
    },
    "DINO student": lambda own: {"student": prefixed("module.backbone.", own)},
    "lightning": lambda own: {"state_dict": prefixed("backbone.", own)},
    "DETR": lambda own: {"model": {**prefixed("backbone.0.body.", own), "class_embed.weight": torch.zeros(2, 2)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_files_of_known_origin_are_recognised(layout: str, norm: Norm, resnet: Tensors, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](resnet), tmp_path / "file.pth")
    loaded = trunk(norm=norm)
    report = load_trunk(loaded, tmp_path / "file.pth", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 0.0, "RoI head": 0.0} and not report.mismatched
    assert body_equals(loaded, resnet)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_group_norms_take_over_group_norms_alone(neck: str, resnet: Tensors, tmp_path: Path) -> None:
    def grouped(seed: int) -> Trunk:
        torch.manual_seed(seed)
        return Trunk(TrunkConfig("resnet18", norm="group", neck=neck, fpn_channels=32, box_head_width=32))  # type: ignore[arg-type]

    file, loaded = tmp_path / "file.safetensors", grouped(0)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    save_file(resnet, file)
    with pytest.raises(
        UserError, match=r"^[^\n]*batch norms [^\n]*trunk\.norm=group[^\n]*set trunk\.norm to batch[^\n]*$"
    ):
        load_trunk(loaded, file, minimum=0.5)
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())
    save_trunk(file, source := grouped(1), ("backbone", "RoI head"))
    assert load_trunk(loaded, file, minimum=1.0).shares["backbone"] == 1
    assert torch.equal(loaded.backbone.body.layer1[0].bn1.weight, source.backbone.body.layer1[0].bn1.weight)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_a_detectors_trunk_is_found_with_its_head(kind: str, tmp_path: Path) -> None:
    source = trunk(1)
    detector = DETECTORS[kind]().build(source, 3)
    save_file(detector.state_dict(), tmp_path / "detector.safetensors")
    loaded = trunk(2)
    report = load_trunk(loaded, tmp_path / "detector.safetensors", minimum=1.0)
    assert set(report.shares.values()) == {1.0} and report.parameter_share == 1 and report.loaded == report.total
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert all("rpn" in key or "predictor" in key or "mask" in key for key in report.unused)


def c4(seed: int = 0, norm: Norm = "batch") -> Trunk:
    torch.manual_seed(seed)
    return Trunk(TrunkConfig("resnet18", neck="c4", norm=norm))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_c4_takes_the_last_stage_as_its_head(layout: str, resnet: Tensors, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](resnet), tmp_path / "file.pth")
    loaded = c4()
    report = load_trunk(loaded, tmp_path / "file.pth", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "RoI head": 1.0} and report.loaded == report.total
    assert body_equals(loaded, resnet)
    assert torch.equal(loaded.box_head.layer4[1].bn2.running_var, resnet["layer4.1.bn2.running_var"])


@pytest.mark.parametrize("kind", ["trunk", "faster_rcnn", "mask_rcnn"])
def test_weights_pass_between_c4_and_pyramids(kind: str, tmp_path: Path) -> None:
    path, source = tmp_path / "file.safetensors", c4(1)
    if kind == "trunk":
        save_trunk(path, source, ("backbone", "RoI head"))
    else:
        save_file(DETECTORS[kind]().build(source, 3).state_dict(), path)
    report = load_trunk(again := c4(2), path, minimum=1.0)
    assert report.parameter_share == 1 and bool(report.unused) == (kind != "trunk")
    pyramid = trunk(2)
    assert load_trunk(pyramid, path, minimum=1.0).shares == {"backbone": 1.0, "FPN": 0.0, "RoI head": 0.0}
    save_trunk(path, pyramid, ("backbone", "FPN", "RoI head"))
    report = load_trunk(back := c4(3), path, minimum=1.0)
    assert report.parameter_share == 1 and any("fpn" in key for key in report.unused)
    for loaded in (again, back):
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_swin_takes_torchvisions_file_and_no_resnet(resnet: Tensors, tmp_path: Path) -> None:
    torch.manual_seed(7)
    swin = swin_t(weights=None).state_dict()
    torch.save(swin, tmp_path / "swin.pth")
    torch.save(resnet, tmp_path / "resnet.pth")
    loaded = trunk(backbone="swin_t")
    report = load_trunk(loaded, tmp_path / "swin.pth", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 0.0, "RoI head": 0.0} and body_equals(loaded, swin)
    with pytest.raises(UserError, match="of the backbone would be loaded"):
        load_trunk(loaded, tmp_path / "resnet.pth", 0.99)


def test_report_of_a_fit_and_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_trunk(path, trunk(1), ("backbone", "FPN", "RoI head"))
    total = len(trunk().state_dict())
    assert str(load_trunk(trunk(), path, 1.0)) == (
        f"weights: {total} of {total} tensors, 100.0% of parameters; backbone ok, FPN ok, RoI head ok (from {path})"
    )
    save_trunk(path, trunk(1), ("backbone", "FPN"))
    assert "backbone ok, FPN ok, RoI head new" in str(load_trunk(trunk(), path, 1.0))


def test_a_misfit_is_refused_with_its_reason_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(1)
    save_trunk(path, Trunk(TrunkConfig("resnet18", fpn_channels=32, box_head_width=32)), ("backbone", "FPN"))
    target = trunk()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_trunk(target, path, 0.99)
    first, *rest = str(caught.value).splitlines()
    assert "of the FPN would be loaded, all of it is asked for" in first and "FPN 16" in first
    assert any("shape (32, 64, 1, 1) in the file, (16, 64, 1, 1) in the trunk" in line for line in rest)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "file"),
    [("resnet18", resnet34), ("resnet18", resnet50), ("resnet34", resnet18), ("swin_t", swin_s)],
)
def test_weights_of_another_backbone_are_refused(backbone: str, file: Callable[..., object], tmp_path: Path) -> None:
    torch.save(file(weights=None).state_dict(), tmp_path / "other.pth")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="choose the trunk that the file is of") as caught:
        load_trunk(trunk(backbone=backbone), tmp_path / "other.pth", 0.99)
    fitting = f"the file fits --trunk.backbone {file.__name__}"
    assert (fitting in str(caught.value)) == (file is not swin_s)  # which is no backbone here


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["ATTACKED"],)


def broken_files(folder: Path, tensors: Tensors) -> dict[str, Path]:
    files = {
        name: folder / name
        for name in ("code.pth", "text.pth", "text.safetensors", "empty.pth", "empty.safetensors", "cut.safetensors")
    }
    files["code.pth"].write_bytes(pickle.dumps({"state_dict": Attack()}))
    for name in ("text.pth", "text.safetensors"):
        files[name].write_text("<html>404: not found, sign in to download</html>\n" * 5)
    for name in ("empty.pth", "empty.safetensors"):
        files[name].touch()
    save_file(tensors, files["cut.safetensors"])
    with files["cut.safetensors"].open("rb+") as file:
        file.truncate(1_000_000)
    return files


def test_broken_files_are_refused_and_no_code_is_run(
    resnet: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
    for path in [*broken_files(tmp_path, resnet).values(), tmp_path / "missing.pth"]:
        with pytest.raises(UserError, match=r"^[^\n]+$") as caught:  # one line
            read_tensors(path)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "attacked").exists()


REGNET = {"regnet.embedder.embedder.convolution.weight": torch.zeros(32, 3, 3, 3)}  # of Hugging Face


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}, {"fc.weight": torch.zeros(3)}, REGNET])
def test_files_without_a_backbone_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"no named tensors|of the backbone would be loaded"):
        load_trunk(trunk(), tmp_path / "file.pth", 0.99)
