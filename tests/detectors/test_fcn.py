"""FCN: its dilations, heads and loss against torchvision and slow references."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate

from boxless.detectors.detector import build_trunk
from boxless.detectors.fcn import FCN, VOID, FCNConfig, starts
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.errors import UserError
from boxless.interop.weights import load_trunk, save_trunk


def make(head: str, backbone: str = "resnet18", **options: object) -> FCN:
    config = FCNConfig(head=head, **options)  # type: ignore[arg-type]
    trunk = build_trunk(TrunkConfig(backbone=backbone, neck="none"), config)
    detector = config.build(trunk, 4)
    assert isinstance(detector, FCN)
    return detector


def shaken(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with norms that hide nothing: ours start blocks as the identity."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.double().eval()


@pytest.mark.parametrize(("head", "stride"), [("d8", 8), ("16s", 16)])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_strides_and_shapes(head: str, stride: int, backbone: str) -> None:
    detector = make(head, backbone).eval()
    with torch.no_grad():
        maps = detector.backbone(torch.zeros(1, 3, 64, 96))
        found = detector([torch.rand(3, 65, 49), torch.rand(3, 32, 40)])
    assert maps["3"].shape[2:] == (64 // stride, 96 // stride)
    assert maps["1"].shape[2:] == (8, 12)
    for output, size in zip(found, ((65, 49), (32, 40)), strict=True):
        assert output["logits"].shape == (4, *size) and output["classes"].shape == size
        assert torch.equal(output["logits"].argmax(0), output["classes"])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_dilated_maps_hold_those_without_dilation(backbone: str) -> None:
    plain = shaken(Trunk(TrunkConfig(backbone=backbone, neck="none")))
    dilated = make("d8", backbone).double().eval()
    dilated.backbone.load_state_dict(plain.backbone.state_dict())
    image = torch.randn(1, 3, 97, 128, dtype=torch.float64)  # 13 x 16 cells of C3, 7 x 8 of C4, 4 x 4 of C5
    with torch.no_grad():
        wanted, maps = plain.backbone(image), dilated.backbone(image)
    assert maps["3"].shape[2:] == (13, 16) and wanted["3"].shape[2:] == (4, 4)
    torch.testing.assert_close(maps["1"], wanted["1"])
    torch.testing.assert_close(maps["2"][..., ::2, ::2], wanted["2"])
    torch.testing.assert_close(maps["3"][..., ::4, ::4], wanted["3"])


@pytest.mark.parametrize(("head", "replaced"), [("d8", [False, True, True]), ("16s", [False, False, True])])
def test_the_body_is_torchvisions_and_moco_dilates_one_convolution_more(head: str, replaced: list[bool]) -> None:
    reference = shaken(torchvision.models.resnet50(weights=None, replace_stride_with_dilation=replaced))
    detector = make(head, "resnet50").double().eval()
    detector.backbone.body.load_state_dict(reference.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)

    def last(network: torchvision.models.ResNet) -> Tensor:
        maps = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        return network.layer4(network.layer3(network.layer2(network.layer1(maps))))

    with torch.no_grad():
        found = detector.backbone(image)["3"]
        if head == "16s":
            assert not torch.allclose(found, last(reference))
            reference.layer4[0].conv2.dilation = reference.layer4[0].conv2.padding = (2, 2)
        torch.testing.assert_close(found, last(reference))
    dilations = [
        m.dilation[0] for m in detector.backbone.body.layer4.modules() if getattr(m, "kernel_size", 0) == (3, 3)
    ]
    assert dilations == ([2, 4, 4] if head == "d8" else [2, 2, 2])


def test_the_heads_are_those_of_the_tables() -> None:
    d8, moco = make("d8", "resnet50"), make("16s", "resnet50")
    shapes = [tuple(m.weight.shape) for m in d8.head.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(512, 2048, 3, 3), (512, 512, 3, 3), (512, 2560, 3, 3), (4, 512, 1, 1)]
    assert d8.auxiliary is not None and moco.auxiliary is None
    shapes = [tuple(m.weight.shape) for m in d8.auxiliary.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(256, 1024, 3, 3), (4, 256, 1, 1)]
    dropped = [m.p for m in d8.modules() if isinstance(m, nn.Dropout2d)]
    assert dropped == [0.1, 0.1]
    found = [(m.dilation, m.padding, m.kernel_size) for m in moco.head.modules() if isinstance(m, nn.Conv2d)]
    assert found == [((6, 6), (6, 6), (3, 3))] * 2 + [((1, 1), (0, 0), (1, 1))]


@pytest.mark.parametrize("corners", [False, True])
def test_the_loss_is_cross_entropy_over_all_pixels(corners: bool) -> None:
    detector = shaken(make("d8", align_corners=corners)).train()
    for part in detector.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    images = [torch.rand(3, 40, 48, dtype=torch.float64), torch.rand(3, 48, 33, dtype=torch.float64)]
    truths = [torch.randint(0, 4, image.shape[1:], dtype=torch.uint8) for image in images]
    truths[0][:10] = VOID
    losses = detector(images, [{"classes": each} for each in truths])
    batch = torch.zeros(2, 3, 48, 48, dtype=torch.float64)
    for row, image in enumerate(images):
        mean, std = (torch.tensor(v, dtype=image.dtype)[:, None, None] for v in (TrunkConfig.mean, TrunkConfig.std))
        batch[row, :, : image.shape[1], : image.shape[2]] = (image - mean) / std
    with torch.no_grad():
        maps = detector.backbone(batch)
        for name, part, level, weight in (
            ("loss_classes", detector.head, "3", 1.0),
            ("loss_auxiliary", detector.auxiliary, "2", 0.4),
        ):
            logits = interpolate(part(maps[level]), (48, 48), mode="bilinear", align_corners=corners).numpy()
            total = 0.0
            for row, truth in enumerate(truths):
                for (y, x), number in np.ndenumerate(truth.numpy()):
                    if number != VOID:
                        scores = logits[row, :, y, x]
                        total += float(np.log(np.exp(scores).sum()) - scores[number])
            assert losses[name].item() == pytest.approx(weight * total / (2 * 48 * 48), rel=1e-5)


def test_a_batch_without_a_class_has_no_loss_and_no_gradient() -> None:
    detector = make("d8")
    losses = detector([torch.rand(3, 32, 32)] * 2, [{"classes": torch.full((32, 32), VOID, dtype=torch.uint8)}] * 2)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(value.item() == 0 for value in losses.values())
    assert all(not p.grad.any() for p in detector.parameters() if p.grad is not None)


def test_windows_are_mmsegs_and_average_to_the_whole() -> None:
    assert starts(2049, 769, 513) == [0, 513, 1026, 1280]  # slide_inference on Cityscapes
    assert starts(1025, 769, 513) == [0, 256] and starts(700, 769, 513) == [0] and starts(769, 769, 513) == [0]
    detector = make("d8", window=(16, 10)).eval()

    class Pixelwise(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"3": torch.cat([image, image[:, :1] ** 2], 1)}

    detector.backbone, detector.head = Pixelwise(), nn.Identity()  # type: ignore[assignment]
    image = torch.rand(3, 37, 50)
    whole = Pixelwise()(detector.normalize(image)[None])["3"][0]
    torch.testing.assert_close(detector([image])[0]["logits"], whole)


@pytest.mark.parametrize("neck", ["fpn", "fpn_p3", "c4"])
def test_pretrained_trunks_fill_all_of_the_body(neck: str, tmp_path: Path) -> None:
    source = Trunk(TrunkConfig(backbone="resnet18", fpn_channels=32, box_head_width=32, neck=neck))  # type: ignore[arg-type]
    save_trunk(tmp_path / "w.safetensors", source, tuple(source.parts))
    config = FCNConfig()
    trunk = build_trunk(with_neck(source.config, config.necks), config)
    report = load_trunk(trunk, tmp_path / "w.safetensors", 0.99)
    assert report.shares == {"backbone": 1.0} and report.parameter_share == 1.0
    detector = config.build(trunk, 3)
    last = source.box_head.layer4 if neck == "c4" else source.backbone.body.layer4
    assert torch.equal(detector.backbone.body.layer4[1].conv2.weight, last[1].conv2.weight)


@pytest.mark.parametrize("head", ["d8", "16s"])
def test_it_learns_two_images(head: str) -> None:
    torch.manual_seed(0)
    detector = make(head)
    truths = [torch.zeros(48, 48, dtype=torch.uint8) for _ in range(2)]
    truths[0][:, 24:], truths[1][16:] = 1, 2
    images = [torch.stack([truth == k for k in range(3)]).float() for truth in truths]
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    values = []
    for _ in range(8):
        loss = torch.stack(list(detector(images, [{"classes": each} for each in truths]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


def test_only_resnets_can_be_dilated() -> None:
    config = FCNConfig()
    with pytest.raises(UserError, match=r"trunk.backbone: mobilenet_v2; detector.kind=fcn dilates a ResNet"):
        config.build(Trunk(TrunkConfig(backbone="mobilenet_v2", neck="none")), 3)
