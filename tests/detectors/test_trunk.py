import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d, roi_align
from torchvision.ops.poolers import LevelMapper

from boxless.detectors.trunk import LEVELS, RoIPool, Trunk, TrunkConfig, freeze, norm_layer
from boxless.errors import UserError

SMALL = TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)
SWIN = TrunkConfig("swin_t", fpn_channels=16, box_head_width=32)


def pyramid(height: int, width: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """Random features of P2..P5 for an image of that size, (batch, 3, ceil(size / stride))."""
    generator = torch.Generator().manual_seed(0)
    shape = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    return {name: torch.randn(batch, 3, *size, generator=generator) for name, size in zip(LEVELS, shape, strict=True)}


def random_boxes(count: int, width: int, height: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values
    return corners.flatten(1) * torch.tensor([width, height, width, height])


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_pooling_a_level_is_aligned_roi_align_of_that_level(level: int) -> None:
    features = pyramid(256, 224)
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), random_boxes(3, 224, 256)], 1)
    pooled = RoIPool().pool(features, rois, torch.full((3,), level), (256, 224))
    expected = roi_align(features[str(level - 2)], rois, 7, spatial_scale=2.0**-level, aligned=True)
    torch.testing.assert_close(pooled, expected)


def test_boxes_of_mixed_levels_stay_in_their_order() -> None:
    features = pyramid(224, 224)
    rois = torch.cat([torch.zeros(8, 1), random_boxes(8, 224, 224)], 1)
    levels = torch.tensor([5, 2, 3, 2, 4, 5, 3, 2])
    together = RoIPool().pool(features, rois, levels, (224, 224))
    for i in range(8):
        torch.testing.assert_close(
            together[i : i + 1], RoIPool().pool(features, rois[i : i + 1], levels[i : i + 1], (224, 224))
        )
    assert RoIPool().pool(features, rois[:0], levels[:0], (224, 224)).shape == (0, 3, 7, 7)


def test_small_view_whose_last_level_is_rounded_up() -> None:
    ramp = {name: torch.zeros(1, 3, 1, 1) for name in LEVELS}
    cells = (torch.arange(4) + 0.5) * 112 / 4  # P5 of a 112 px view has 4 cells of 28 px, not 3.5 of 32
    ramp["3"] = cells.expand(1, 3, 4, 4)
    box = torch.tensor([[0.0, 14, 14, 98, 98]])
    pooled = RoIPool().pool(ramp, box, torch.tensor([5]), (112, 112))
    centres = 14 + (torch.arange(7) + 0.5) * 84 / 7
    torch.testing.assert_close(pooled[0, 0], centres.expand(7, 7), atol=1e-4, rtol=0)


def test_pooling_gives_gradient_to_the_used_levels_only() -> None:
    features = {name: value.requires_grad_() for name, value in pyramid(128, 128).items()}
    rois = torch.tensor([[0.0, 10, 10, 50, 60], [1.0, 5, 20, 120, 100]])
    RoIPool().pool(features, rois, torch.tensor([2, 4]), (128, 128)).square().sum().backward()
    assert features["0"].grad[0].any() and not features["0"].grad[1].any()
    assert features["2"].grad[1].any() and not features["2"].grad[0].any()
    assert features["1"].grad is None and features["3"].grad is None


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([60, 225, 900]))
def test_detectors_choose_levels_as_torchvision_does(seed: int, largest: int) -> None:
    boxes = [random_boxes(20, largest, largest, seed), random_boxes(5, largest, largest, seed + 1)]
    boxes[0][0] = torch.tensor([0.0, 0, 224, 224])
    boxes[0][1] = torch.tensor([3.0, 3, 115, 115])
    boxes[0][2] = torch.tensor([3.0, 3, 3, 3])
    pool = RoIPool()
    seen: list[torch.Tensor] = []
    pool.pool = lambda features, rois, levels, frame: seen.extend([rois, levels, torch.tensor(frame)])  # type: ignore
    pool(pyramid(96, 160), boxes, [(96, 160)] * 2)
    rois, levels, frame = seen
    assert torch.equal(levels - 2, LevelMapper(2, 5, canonical_scale=224, canonical_level=4)(boxes))
    assert torch.equal(rois[:, 1:], torch.cat(boxes)) and rois[:, 0].tolist() == [0.0] * 20 + [1.0] * 5
    assert frame.tolist() == [96, 160]


def test_names_and_shapes_are_torchvisions() -> None:
    ours = Trunk(TrunkConfig("resnet50")).state_dict()
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    theirs = {key.removeprefix("roi_heads."): value for key, value in theirs.items()}
    theirs = {key: value for key, value in theirs.items() if key.startswith(("backbone.", "box_head."))}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d)])
def test_norm_is_everywhere_the_asked_one(norm: str, kind: type) -> None:
    trunk = Trunk(TrunkConfig("resnet18", norm=norm, fpn_channels=16, box_head_width=32))  # type: ignore[arg-type]
    norms = [module for module in trunk.modules() if "BatchNorm" in type(module).__name__]
    assert {type(module) for module in norms} == {kind} and len(norms) == 20 + 8 + 4
    features = trunk.pyramid(torch.rand(2, 3, 64, 96))
    assert [tuple(value.shape[2:]) for value in features.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert all(value.isfinite().all() for value in features.values())


def test_group_norm_fits_any_width() -> None:
    for channels in (16, 48, 64, 256):
        assert norm_layer("group")(channels)(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_frozen_stages_stay_as_loaded_in_training_too() -> None:
    torch.manual_seed(0)
    trunk = Trunk(SMALL)
    torch.nn.init.ones_(trunk.backbone.body.layer2[0].bn2.weight)
    freeze(trunk, 2)
    trunk.train()
    frozen = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=0.1)
    trunk.pyramid(torch.rand(2, 3, 64, 64))["0"].square().sum().backward()
    optimizer.step()
    moved = {key for key, value in trunk.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in moved if key.startswith(frozen)]
    assert {"backbone.body.layer2.0.conv1.weight", "backbone.body.layer2.0.bn1.running_mean"} <= moved
    assert before.keys() == Trunk(SMALL).state_dict().keys()


def test_c4_pools_every_box_from_the_one_map() -> None:
    features = {"0": pyramid(256, 224)["2"]}
    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), random_boxes(3, 224, 256)], 1)
    expected = roi_align(features["0"], rois, 14, spatial_scale=1 / 16, aligned=True)
    pool = RoIPool(14, first=4, last=4)
    torch.testing.assert_close(pool.pool(features, rois, torch.tensor([2, 3, 5]), (256, 224)), expected)
    boxes = [rois[:1, 1:], rois[1:, 1:]]
    torch.testing.assert_close(pool(features, boxes, [(256, 224)] * 2), expected)


def test_c4_body_and_head_are_the_two_parts_of_a_resnet() -> None:
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None, zero_init_residual=True).eval()
    trunk = Trunk(TrunkConfig("resnet18", neck="c4")).eval()
    names = [*trunk.parts["backbone"].state_dict(), *trunk.parts["RoI head"].state_dict()]
    assert names == [name for name in whole.state_dict() if not name.startswith("fc")]
    trunk.backbone.body.load_state_dict(whole.state_dict(), strict=False)
    trunk.box_head.load_state_dict(whole.state_dict(), strict=False)
    whole.fc = nn.Identity()
    image = torch.rand(2, 3, 64, 96)
    maps = trunk.pyramid(image)
    assert list(maps) == ["0"] and maps["0"].shape == (2, trunk.backbone.out_channels, 4, 6)
    torch.testing.assert_close(trunk.box_head(maps["0"]), whole(image))
    freeze(trunk, 5)
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_swin_is_torchvisions_with_every_map_normed() -> None:
    torch.manual_seed(0)
    whole, body = torchvision.models.swin_t(weights=None).eval(), Trunk(SWIN).backbone.body.eval()
    kept = {name: value for name, value in whole.state_dict().items() if not name.startswith("head")}
    body.load_state_dict(kept)
    image = torch.rand(1, 3, 112, 80)
    maps = body(image)
    assert [tuple(value.shape[1:]) for value in maps.values()] == [
        (96, 28, 20), (192, 14, 10), (384, 7, 5), (768, 4, 3)
    ]  # fmt: skip
    torch.testing.assert_close(maps["3"], whole.permute(whole.norm(whole.features(image))))
    for value in maps.values():
        torch.testing.assert_close(value.mean(1), torch.zeros_like(value[:, 0]), atol=1e-4, rtol=0)
        assert (value.std(1, correction=0) > 0.9).all() and (value.std(1, correction=0) <= 1.0001).all()


def test_swins_first_stages_are_frozen_and_its_trunk_learns() -> None:
    trunk = Trunk(SWIN)
    freeze(trunk, 2)
    sum(value.square().sum() for value in trunk.pyramid(torch.rand(2, 3, 64, 64)).values()).backward()  # type: ignore[union-attr]
    without = {name.split(".")[1] for name, value in trunk.backbone.body.named_parameters() if value.grad is None}
    assert without == {"0", "1"} and trunk.body_width == 768
    every = [parameter for modules in trunk.stages for module in modules for parameter in module.parameters()]
    assert sorted(map(id, every)) == sorted(map(id, trunk.backbone.body.parameters()))


def test_what_c4_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match=r"^trunk\.neck: c4 needs a ResNet, .* choose fpn$"):
        Trunk(TrunkConfig("swin_t", neck="c4"))
    with pytest.raises(UserError, match=r"^trunk\.neck: c4; .* pretrain with trunk\.neck=fpn"):
        _ = Trunk(TrunkConfig("resnet18", neck="c4")).body_width
