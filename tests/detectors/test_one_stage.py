import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet, retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import keep_above
from boxless.detectors.one_stage import BoxlessFCOS, BoxlessRetinaNet, FCOSConfig, RetinaNetConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.errors import UserError
from boxless.interop.weights import load_trunk, save_trunk

KINDS = ("retinanet", "fcos")
CONFIGS: dict[str, Any] = {
    "retinanet": RetinaNetConfig(anchor_sizes=(8, 16, 32, 64, 128), detections=20),
    "fcos": FCOSConfig(detections=20),
}
TRUNK = TrunkConfig("resnet18", fpn_channels=64, box_head_width=32)


def detector(kind: str, seed: int = 0) -> tuple[Trunk, nn.Module]:
    torch.manual_seed(seed)
    config = CONFIGS[kind]
    trunk = Trunk(with_neck(TRUNK, config.necks))
    model = config.build(trunk, 3)
    with torch.no_grad():  # zeroed last gammas and small heads would hide what differs
        for name, parameter in model.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(1)
            elif name.startswith("head") and name.endswith("weight") and parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.05)
    return trunk, model


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    boxes = torch.tensor([[5.0, 10, 60, 40], [30, 5, 50, 30], [40, 30, 90, 64]])
    full = {"boxes": boxes, "labels": torch.tensor([2, 3, 1])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [torch.rand(3, 64, 96), torch.rand(3, 80, 50)], [full, none]


def torchvisions(kind: str, model: nn.Module) -> nn.Module:
    """torchvision's own detector of its defaults, with the weights of ours; its labels are from 0."""
    backbone = copy.deepcopy(model.backbone)
    if kind == "fcos":
        other: nn.Module = FCOS(backbone, 3, score_thresh=0.0, detections_per_img=20)
    else:
        anchors = copy.deepcopy(model.anchor_generator)
        other = RetinaNet(backbone, 3, anchor_generator=anchors, score_thresh=0.0, detections_per_img=20)
    other.load_state_dict(model.state_dict())
    other.transform = copy.deepcopy(model.transform)
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_boxes_are_torchvisions_with_labels_from_one(kind: str) -> None:
    _, model = detector(kind)
    other = torchvisions(kind, model)
    images, targets = images_and_targets()
    from_zero = [{**target, "labels": target["labels"] - 1} for target in targets]
    ours, theirs = model.train()(images, targets), other.train()(images, from_zero)
    assert set(ours) == set(theirs) and len(ours) == (2 if kind == "retinanet" else 3)
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss)
        assert loss > 0
    keep_above(model, 0.0)
    with torch.no_grad():
        ours, theirs = model.eval()(images), other.eval()(images)
    for found, expected in zip(ours, theirs, strict=True):
        assert len(expected["boxes"]) == 20 and set(found["labels"].tolist()) <= {1, 2, 3}
        torch.testing.assert_close(found, {**expected, "labels": expected["labels"] + 1})
    assert targets[0]["labels"].tolist() == [2, 3, 1]  # as they were


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back_as_they_were_learned(kind: str) -> None:
    """A detector whose head says "class k" everywhere has no class loss on objects of class k alone, and finds k."""
    _, model = detector(kind)
    logits = model.head.classification_head.cls_logits
    images, _ = images_and_targets()
    boxes = torch.tensor([[0.0, 0, 96, 64]])
    with torch.no_grad():
        logits.weight.zero_()
        logits.bias.fill_(-20).view(-1, 3)[:, 1] = 5
        (found,) = model.eval()(images[:1])
        assert set(found["labels"].tolist()) == {2} and len(found["boxes"]) == 20
        targets = [{"boxes": boxes, "labels": torch.tensor([label])} for label in (1, 2, 3)]
        losses = [float(model.train()(images[:1], [target])["classification"]) for target in targets]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_body_pyramid_and_every_other_parameter(kind: str) -> None:
    trunk, model = detector(kind)
    losses = model.train()(*images_and_targets())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # DDP waits for each of them
    weak = ("layer_blocks", "inner_blocks", "extra_blocks", "head.")  # levels without an object learn little
    silent = [name for name, p in model.named_parameters() if not p.grad.any() and not any(w in name for w in weak)]
    assert silent == []
    assert all(p.grad.any() for p in trunk.backbone.fpn.inner_blocks[0].parameters())
    empty = model(images_and_targets()[0], [images_and_targets()[1][1]] * 2)
    assert all(value.isfinite() for value in empty.values())


def test_detectors_are_the_papers_on_the_trunks_own_modules() -> None:
    config = RetinaNetConfig(detections=20)
    trunk = Trunk(with_neck(TRUNK, config.necks))
    model = config.build(trunk, 3)
    assert isinstance(model, BoxlessRetinaNet) and model.backbone is trunk.backbone
    extra = trunk.backbone.fpn.extra_blocks
    assert isinstance(extra, LastLevelP6P7) and extra.p6.in_channels == 512  # C5
    theirs = retinanet._default_anchorgen()
    assert (model.anchor_generator.sizes, model.anchor_generator.aspect_ratios) == (theirs.sizes, theirs.aspect_ratios)
    assert [model.score_thresh, model.detections_per_img] == [0.05, 20]
    maps = model.backbone(torch.rand(1, 3, 128, 256))
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]

    trunk, model = detector("fcos")
    assert isinstance(model, BoxlessFCOS) and trunk.backbone.fpn.extra_blocks.p6.in_channels == 64  # P5
    assert isinstance(model.anchor_generator, AnchorGenerator)
    assert model.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    config = FCOSConfig()
    with pytest.raises(UserError, match=r"trunk\.fpn_channels: 16; .* a multiple of 32"):
        config.build(Trunk(TrunkConfig("resnet18", neck="fpn_p3", fpn_channels=16)), 3)


def test_half_precision_stops_at_the_head() -> None:
    _, model = detector("fcos")
    images, targets = images_and_targets()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images, targets)
        found = model.eval()(images)[0]
    assert (
        {value.dtype for value in losses.values()} == {found["boxes"].dtype, found["scores"].dtype} == {torch.float32}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_the_detector_has_of_a_pretrained_trunk_is_loaded(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = Trunk(TRUNK)
    path = tmp_path / "weights.safetensors"
    save_trunk(path, source, ("backbone", "FPN", "RoI head"))
    trunk = Trunk(with_neck(TRUNK, DETECTORS[kind].necks))
    report = load_trunk(trunk, path, minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 1.0} and report.parameter_share == 1 and not report.mismatched
    p2 = ("backbone.fpn.inner_blocks.p2.", "backbone.fpn.layer_blocks.p2.")
    assert all(key.startswith((*p2, "box_head.")) for key in report.unused)
    assert "have no place here, such as backbone.fpn.inner_blocks.p2.0.weight" in str(report)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = trunk.eval().backbone(image), source.eval().backbone(image)
    for level, name in zip(("1", "2", "3"), ours, strict=True):
        torch.testing.assert_close(ours[name], theirs[level])


def test_a_detector_is_a_source_of_weights_for_its_like_and_for_others(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    source, model = detector("retinanet", seed=3)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    again, _ = detector("fcos", seed=4)
    report = load_trunk(Trunk(again.config), path, minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 1.0}
    assert all(key.startswith(("head.", "backbone.fpn.extra_blocks")) for key in report.unused)
    with pytest.raises(UserError, match="of the FPN would be loaded"):  # P2 is not there
        load_trunk(Trunk(TRUNK), path, minimum=0.99)
    four = Trunk(TRUNK)
    report = load_trunk(four, path, minimum=0.5)
    assert 0.5 < report.shares["FPN"] < 1 and report.shares["backbone"] == 1
    for number in range(3):
        ours, theirs = four.backbone.fpn.inner_blocks[number + 1], source.backbone.fpn.inner_blocks[number]
        assert torch.equal(ours[0].weight, theirs[0].weight)


@pytest.mark.parametrize("kind", [*KINDS, "keypoint_rcnn"])
def test_each_kind_gets_a_neck_that_fits(kind: str) -> None:
    necks = {
        with_neck(TrunkConfig(neck=neck), DETECTORS[kind].necks).neck  # type: ignore[arg-type]
        for neck in ("fpn", "fpn_p3", "c4", "transformer")
    }
    assert necks == ({"fpn"} if kind == "keypoint_rcnn" else {"fpn_p3"})
    assert with_neck(TrunkConfig(neck="fpn_p3"), FasterRCNNConfig.necks).neck == "fpn"


def test_moving_average_of_positives_divides_as_detectron2s_does() -> None:
    """RetinaNet's losses written out in float64 over two steps of the average; norms use the batch's own statistics."""
    torch.manual_seed(0)
    config = RetinaNetConfig(anchor_sizes=(8, 16, 32, 64, 128), loss_normalizer="moving_average")
    model = config.build(Trunk(with_neck(TRUNK, config.necks)), 3).train()
    assert float(model.head.positives) == 100 and "head.positives" in model.state_dict()
    with torch.no_grad():
        for parameter in model.head.parameters():
            if parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.05)
    images, targets = images_and_targets()
    batch, moved = model.transform(images, targets)
    normalizer = 100.0
    for step in range(2):
        losses = model(images, targets)
        with torch.no_grad():
            maps = list(model.backbone(batch.tensors).values())
            outputs, anchors = model.head(maps), model.anchor_generator(batch, maps)
        positives, focal, distance = 0, 0.0, 0.0
        for image, places in enumerate(anchors):
            boxes, labels = moved[image]["boxes"], moved[image]["labels"] - 1
            probability = outputs["cls_logits"][image].double().sigmoid()
            wanted = torch.zeros_like(probability)
            counts = torch.ones(len(places), dtype=torch.bool)
            if len(boxes):
                matched = model.proposal_matcher(retinanet.box_ops.box_iou(boxes, places))
                counts = matched != -2
                on_object = matched >= 0
                wanted[on_object, labels[matched[on_object]]] = 1
                positives += int(on_object.sum())
                offsets = model.head.regression_head.box_coder.encode_single(
                    boxes[matched[on_object]], places[on_object]
                )
                distance += float((outputs["bbox_regression"][image][on_object] - offsets).abs().double().sum())
            correct = torch.where(wanted > 0, probability, 1 - probability)[counts]
            weight = torch.where(wanted > 0, 0.25, 0.75)[counts]
            focal += float((-weight * (1 - correct) ** 2 * correct.log()).sum())
        normalizer = 0.9 * normalizer + 0.1 * max(positives, 1)
        assert positives > 3 and float(model.head.positives) == pytest.approx(normalizer)
        assert losses["classification"].item() == pytest.approx(focal / normalizer, rel=1e-4), step
        assert losses["bbox_regression"].item() == pytest.approx(distance / normalizer, rel=1e-4)
    empty = model(images, [targets[1]] * 2)
    assert float(model.head.positives) == pytest.approx(0.9 * normalizer + 0.1)
    assert empty["bbox_regression"].item() == 0 and empty["classification"].isfinite()
    torch.stack(list(losses.values())).sum().backward()
