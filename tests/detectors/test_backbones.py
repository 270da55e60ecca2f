import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import group_norm
from torchvision.ops import FrozenBatchNorm2d

from boxless.detectors.backbones import TimmBody, build_body
from boxless.detectors.norms import Norm, convert_norms
from boxless.detectors.trunk import Trunk, TrunkConfig, freeze
from boxless.errors import UserError
from boxless.interop.weights import load_trunk, save_trunk
from boxless.methods.detco import DetCoConfig
from boxless.methods.soco import SoCoConfig
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneOptim, PretrainRecipe
from boxless.tasks.finetune import make_detector_optimizer
from boxless.training import sync_norms

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'boxless[timm]'")

ROUNDED_UP = [(19, 27), (10, 14), (5, 7), (3, 4)]
ROUNDED_DOWN = [(18, 26), (9, 13), (4, 6), (2, 3)]
VIT = "timm:vit_tiny_patch16_224"
BODIES = {
    "resnet18": ((64, 128, 256, 512), ROUNDED_UP),
    "mobilenet_v2": ((24, 32, 96, 1280), ROUNDED_UP),
    "timm:resnet18": ((64, 128, 256, 512), ROUNDED_UP),
    "timm:convnext_atto": ((40, 80, 160, 320), ROUNDED_DOWN),
    "timm:mobilenetv3_small_050": ((8, 16, 24, 288), ROUNDED_UP),
    "timm:regnetx_002": ((24, 56, 152, 368), ROUNDED_UP),
    "timm:pvt_v2_b0": ((32, 64, 160, 256), ROUNDED_UP),
    VIT: ((192,) * 4, [(5, 7), (5, 7), (5, 7), (3, 4)]),
}
"""Widths of C2..C5, and their sizes for an image of 75 x 107 px."""

each_body = pytest.mark.parametrize("name", BODIES)


def trunk(name: str, norm: Norm = "batch", seed: int = 0) -> Trunk:
    torch.manual_seed(seed)
    return Trunk(TrunkConfig(name, norm, fpn_channels=16, box_head_width=32))


def sizes(maps: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(value.shape[2:]) for value in maps.values()]


@each_body
def test_maps_have_their_strides_at_odd_sizes_and_the_whole_trunk_learns(name: str) -> None:
    model, (widths, shapes) = trunk(name), BODIES[name]
    maps = model.backbone.body(torch.rand(2, 3, 75, 107))
    assert list(maps) == ["0", "1", "2", "3"] and sizes(maps) == shapes
    assert model.backbone.body.widths == tuple(value.shape[1] for value in maps.values()) == widths
    assert model.body_width == widths[3]
    levels = model.backbone(torch.rand(2, 3, 64, 96))
    assert sizes(levels) == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # torchvision's `pool` is the last
    sum(value.square().sum() for value in levels.values()).backward()
    parts = nn.ModuleList([model.backbone.body, model.backbone.fpn])
    assert [key for key, value in parts.named_parameters() if value.grad is None] == []


@each_body
def test_freezing_and_layer_decay_reach_each_parameter_once(name: str) -> None:
    model = trunk(name)
    groups = make_detector_optimizer(model, model, FinetuneOptim(layer_decay=0.5)).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sorted(map(id, model.parameters())) == sorted(id(p) for group in groups for p in group["params"])
    assert {scales[id(p)] for p in model.backbone.body.parameters()} == {0.5**depth for depth in range(1, 6)}
    assert {scales[id(p)] for p in model.backbone.fpn.parameters()} == {1.0}
    first, last = model.stages[0], model.stages[4]
    assert all(scales[id(p)] == 0.5**5 for module in first for p in module.parameters())
    assert all(scales[id(p)] == 0.5 for module in last for p in module.parameters())
    freeze(model, 5)
    assert not any(p.requires_grad for p in model.backbone.body.parameters())


def test_methods_see_each_stage_at_its_own_width() -> None:
    config = DetCoConfig(output=8, queue_length=16)
    heads = config.build(trunk("mobilenet_v2")).global_heads
    assert [next(head.parameters()).shape[1] for head in heads] == [24, 32, 96, 1280]


@each_body
def test_a_saved_run_fills_the_trunk(name: str, tmp_path: Path) -> None:
    source, path = trunk(name, seed=1), tmp_path / "weights.safetensors"
    save_trunk(path, source, ("backbone", "FPN", "RoI head"))
    report = load_trunk(loaded := trunk(name, seed=2), path, minimum=1.0)
    assert set(report.shares.values()) == {1.0} and report.loaded == report.total and not report.unused
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_mobilenet_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = torchvision.models.mobilenet_v2(weights=None)
    whole(torch.rand(2, 3, 64, 64))  # other statistics than any new one
    torch.save(whole.state_dict(), tmp_path / "mobilenet.pth")
    loaded = trunk("mobilenet_v2").eval()
    assert load_trunk(loaded, tmp_path / "mobilenet.pth", minimum=1.0).shares["backbone"] == 1
    x = torch.rand(1, 3, 75, 107)
    maps = list(loaded.backbone.body(x).values())
    for number, step in enumerate(whole.eval().features):
        x = step(x)
        if number in (3, 6, 13, 18):  # the last of each stride (Sandler et al., 2018, table 2)
            assert torch.equal(maps.pop(0), x)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "regnetx_002", "resnet18"])
def test_timms_files_give_timms_own_features(name: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = timm.create_model(name)
    whole(torch.rand(2, 3, 64, 64))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    loaded = trunk(f"timm:{name}").eval()
    report = load_trunk(loaded, tmp_path / "model.safetensors", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 0.0, "RoI head": 0.0} and not report.mismatched
    features = timm.create_model(name, features_only=True)  # another way through the same network
    own = features.state_dict()
    named = {key.replace("_", "."): value for key, value in whole.state_dict().items()}
    features.load_state_dict({key: named[key.replace("_", ".")] for key in own})
    image = torch.rand(1, 3, 75, 107)
    for given, expected in zip(loaded.backbone.body(image).values(), features.eval()(image)[-4:], strict=True):
        assert torch.equal(given, expected)


def test_a_vit_gives_its_last_map_normed_at_any_size(tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    torch.save({"student": {f"module.backbone.{key}": value for key, value in whole.state_dict().items()}},
               tmp_path / "dino.pth")  # fmt: skip
    loaded = trunk(VIT).eval()
    assert load_trunk(loaded, tmp_path / "dino.pth", minimum=1.0).shares["backbone"] == 1
    image = torch.rand(1, 3, 64, 96)
    tokens = whole.forward_features(image)[:, 1:]  # without the class token
    maps = loaded.backbone.body(image)
    torch.testing.assert_close(maps["2"], tokens.transpose(1, 2).unflatten(2, (4, 6)))
    assert torch.equal(maps["3"], maps["2"].unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)))


def test_a_vits_first_stages_hold_its_positions_and_its_first_blocks() -> None:
    model = trunk(VIT)
    freeze(model, 2)
    frozen = {key for key, value in model.backbone.body.model.named_parameters() if not value.requires_grad}
    heads = {".".join(key.split(".")[: 2 if key.startswith("blocks") else 1]) for key in frozen}
    assert heads == {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "blocks.2"}


def test_one_stage_pyramids_stand_on_a_vit_too() -> None:
    model = Trunk(TrunkConfig(VIT, neck="fpn_p3", fpn_channels=16))
    assert sizes(model.backbone(torch.rand(1, 3, 64, 96))) == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:regnetx_002", "timm:resnet18"])
def test_frozen_norms_are_the_loaded_ones_for_good(name: str, tmp_path: Path) -> None:
    batch = trunk(name)
    batch.backbone.body(torch.rand(2, 3, 64, 64))
    save_trunk(tmp_path / "weights.safetensors", batch, ("backbone",))
    frozen = trunk(name, "frozen", seed=1)
    assert load_trunk(frozen, tmp_path / "weights.safetensors", minimum=1.0).shares["backbone"] == 1
    image = torch.rand(2, 3, 64, 64)
    expected = batch.eval().backbone.body(image)
    for given, value in zip(frozen.train().backbone.body(image).values(), expected.values(), strict=True):
        torch.testing.assert_close(given, value, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in frozen.backbone.fpn.modules())


def test_group_norm_keeps_the_activations_that_timms_batch_norms_hold() -> None:
    from timm.layers import GroupNormAct

    body, seen = build_body("timm:regnetx_002", "group"), []
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    norms = [module for module in body.modules() if isinstance(module, GroupNormAct)]
    for norm in norms:
        norm.register_forward_hook(lambda norm, given, output: seen.append((norm, given[0].clone(), output.clone())))
    body(torch.rand(1, 3, 64, 64))
    acting = 0
    for norm, given, output in seen:
        normed = group_norm(given, norm.num_groups, norm.weight, norm.bias, norm.eps)
        acting += isinstance(norm.act, nn.ReLU)
        torch.testing.assert_close(output, normed.relu() if isinstance(norm.act, nn.ReLU) else normed)
    assert len(seen) == len(norms) and 0 < acting < len(norms)


def test_norms_over_all_processes_keep_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    body = build_body("timm:regnetx_002", "sync").eval()
    image = torch.rand(2, 3, 64, 64)
    before = body(image)
    monkeypatch.setattr(sync_norms, "world_size", lambda: 2)
    after = sync_norms.synchronize_norms(body)(image)
    assert any(isinstance(module, sync_norms.SynchronizedBatchNorm) for module in body.modules())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_norms_that_cannot_be_replaced_are_refused() -> None:
    with pytest.raises(UserError, match=r"^trunk\.norm: group; timm:x has batch norms .* choose batch or sync$"):
        convert_norms(nn.Sequential(nn.BatchNorm1d(4)), "group", "timm:x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"unknown 'resnet51': did you mean 'resnet\d+'.*\? expected resnet18, .*, or timm:NAME"),
        ("convnext_tiny", r"unknown 'convnext_tiny': is it timm's, 'timm:convnext_tiny'\?"),
        ("timm:convnext_tny", r"timm has no model 'convnext_tny': did you mean timm:convnext_tiny"),
        ("timm:levit_128s", r"timm:levit_128s has maps at strides 16, 32, 64; expected 4, 8, 16 and 32"),
        ("timm:maxvit_pico_rw_256", r"timm:maxvit_pico_rw_256 does not take images of any size \(.*\)"),
    ],
)
def test_backbones_that_there_are_not_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^trunk\.backbone: {message}[^\n]*$"):
        build_body(override(PretrainRecipe(SoCoConfig()), {"trunk.backbone": name}).trunk.backbone, "batch")


def test_without_timm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"^trunk\.backbone: timm:resnet18 needs timm; .*pip install 'boxless\[timm\]'$"
    ):
        TimmBody("resnet18", "batch")


@pytest.mark.parametrize("file", ["swin_t", "resnet18", "timm:convnext_atto", "timm:regnetx_002"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:convnext_femto"])
def test_other_layouts_are_refused_with_what_was_expected(name: str, file: str, tmp_path: Path) -> None:
    body = build_body(file, "batch")
    tensors = {key.removeprefix("model."): value for key, value in body.state_dict().items()}
    save_file(tensors, tmp_path / "other.safetensors")
    target = trunk(name)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"of the backbone would be loaded.*choose the trunk") as caught:
        load_trunk(target, tmp_path / "other.safetensors", 0.99)
    if "only 0%" in str(caught.value):
        assert f"expected like {'features.0.0.weight' if name == 'mobilenet_v2' else 'stem.0.weight'}" in str(
            caught.value
        )
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
