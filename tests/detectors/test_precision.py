"""Detectors in bf16, the default wherever it is fast: on GPUs and newer processors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import build_trunk
from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import TrunkConfig, with_neck
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe, Precision
from boxless.training.device import make_fabric

TRUNK = TrunkConfig(
    "resnet18",
    fpn_channels=32,
    box_head_width=64,
    transformer=TransformerConfig(32, 4, 2, 2, 64, queries=20, dropout=0.0),
)
SMALL = {
    "detector.rpn_samples": 32,
    "detector.rpn_proposals": 30,
    "detector.roi_samples": 64,
    "detector.detections": 20,
    "detector.score_threshold": 0.0,
}
POINTS = 5
KINDS = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "sparse_rcnn", "detr", "rt_detr", "fcn")


def images_and_targets(kind: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A wide image with two objects, one of them far from the origin, where bf16 knows even pixels alone."""
    torch.manual_seed(1)
    images = [torch.rand(3, 64, 480), torch.rand(3, 96, 300)]
    if kind == "fcn":
        return images, [{"classes": torch.ones(image.shape[1:], dtype=torch.int64)} for image in images]
    boxes = torch.tensor([[5.0, 10, 60.3, 40.7], [301.3, 10.7, 370.2, 60.9]])
    target = {"boxes": boxes, "labels": torch.tensor([2, 1])}
    if kind == "mask_rcnn":
        target["masks"] = torch.ones(2, 64, 480, dtype=torch.uint8)
    if kind == "keypoint_rcnn":
        inside = boxes[:, None, :2] + 10 + 20 * torch.rand(2, POINTS, 2)
        target["keypoints"] = torch.cat([inside, torch.ones(2, POINTS, 1)], -1)
    none = {name: value[:0] for name, value in target.items()}
    if kind == "mask_rcnn":
        none["masks"] = torch.zeros(0, 96, 300, dtype=torch.uint8)
    return images, [target, none]


def step_and_detect(kind: str, neck: Any, precision: Precision) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses of one step, taken, and what the first image's detections were before it."""
    torch.manual_seed(0)
    config = override(FinetuneRecipe(), {"detector.kind": kind, **SMALL}).detector
    trunk = build_trunk(with_neck(replace(TRUNK, neck=neck), config.necks), config)
    model = config.build(trunk, 3, POINTS if kind == "keypoint_rcnn" else 0)
    images, targets = images_and_targets(kind)
    fabric = make_fabric(precision)
    placed = fabric.setup(model)
    with torch.inference_mode(), fabric.autocast():
        found = model.eval()(images)[0]
    placed.train()
    torch.manual_seed(2)
    losses = placed(images, targets)
    fabric.backward(sum(losses.values()))
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    return {name: value.item() for name, value in losses.items()}, found


def share_on_grid(boxes: Tensor) -> float:
    """Of coordinates inside the image, those that bf16 can say; untrained FCOS has many, at its cells' middles."""
    inside = boxes[(boxes > 0) & (boxes < torch.tensor([480, 64, 480, 64]))]
    return (inside == inside.bfloat16().float()).float().mean().item() if len(inside) else 0.0


@pytest.mark.parametrize(("kind", "neck"), [*((kind, "fpn") for kind in KINDS), ("faster_rcnn", "c4")])
def test_in_bf16_losses_are_float32s_but_for_rounding_and_boxes_are_not_rounded(kind: str, neck: str) -> None:
    expected, exact = step_and_detect(kind, neck, "32-true")
    losses, found = step_and_detect(kind, neck, "bf16-mixed")
    # the RPN's and the matcher's choices are discrete: a rounded score may choose another sample; and each of Sparse
    # R-CNN's six untrained stages looks where the one before has gone
    assert losses == pytest.approx(expected, rel=0.5 if kind == "sparse_rcnn" else 0.1, abs=0.02)
    if kind == "fcn":
        return
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert share_on_grid(found["boxes"]) < share_on_grid(exact["boxes"]) + 0.2


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
def test_anchors_of_a_wide_image_are_float32s(kind: str) -> None:
    config = DETECTORS[kind]()
    model = config.build(build_trunk(with_neck(TRUNK, config.necks), config), 3)
    generator = model.rpn.anchor_generator if kind == "faster_rcnn" else model.anchor_generator
    batch, _ = model.transform([torch.rand(3, 64, 1344)])
    anchors = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", enabled=enabled):
            maps = list(model.backbone(batch.tensors).values())
        assert maps[0].dtype == (torch.bfloat16 if enabled else torch.float32)
        anchors.append(generator(batch, maps)[0])
    assert torch.equal(*anchors)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_last_levels_of_a_small_image_have_float32s_gradient(kind: str) -> None:
    gradients = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        config = DETECTORS[kind]()
        model = config.build(build_trunk(with_neck(TRUNK, config.necks), config), 3)
        fabric = make_fabric(precision)
        placed = fabric.setup(model).train()
        torch.manual_seed(1)
        target = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1])}
        fabric.backward(sum(placed([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target]).values()))
        gradients.append(model.backbone.fpn.extra_blocks.p7.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.1 * gradients[0].abs().max().item())


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, (1, 1)), (3, 2, (3, 1)), (7, 2, (3, 1)), (3, 3, (2, 2))])
def test_strided_convolutions_of_narrow_maps_have_float32s_gradient(
    kernel: int, stride: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    maps = torch.randn(4, 64, *size)
    convolution = torch.nn.Conv2d(64, 64, kernel, stride, kernel // 2)
    expected = convolution(maps)
    (of_weight,) = torch.autograd.grad(expected.square().mean(), convolution.weight)
    fabric = make_fabric("bf16-mixed")
    placed = fabric.setup(convolution)
    for _ in range(10):
        left = [torch.full((64 * 64 * kernel**2,), torch.nan, dtype=torch.bfloat16) for _ in range(3)]
        del left  # whose memory may be what the next gradient is given
        outcome = placed(maps)
        fabric.backward(outcome.square().mean())
        torch.testing.assert_close(outcome, expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(convolution.weight.grad, of_weight, rtol=0.1, atol=0.1 * of_weight.abs().max())
        convolution.weight.grad = None


def test_a_processor_takes_bf16_for_fp16(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen = make_fabric("16-mixed").strategy.precision
    assert (chosen.precision, getattr(chosen, "scaler", None)) == ("bf16-mixed", None)
    assert "16-mixed is for GPUs" in capsys.readouterr().err
