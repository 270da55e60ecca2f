import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from boxless.detectors.all import DETECTORS
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.detectors.two_stage import BetaRoIHeads, MaskRCNNConfig, box_loss
from boxless.errors import UserError

SMALL = {"rpn_samples": 32, "rpn_proposals": 30, "roi_samples": 16, "detections": 20}


def detector(
    kind: str = "faster_rcnn", head: str = "4conv1fc", neck: str = "fpn", **changes: object
) -> tuple[Trunk, torch.nn.Module]:
    torch.manual_seed(0)
    settings = {"fpn_channels": 16, "box_head": head, "box_head_width": 32, "neck": neck}
    trunk = Trunk(TrunkConfig("resnet18", **settings))  # type: ignore[arg-type]
    return trunk, DETECTORS[kind](**{**SMALL, **changes}).build(trunk, 3)


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 10:40, 5:60] = 1
    full = {"boxes": torch.tensor([[5.0, 10, 60, 40]]), "labels": torch.tensor([2]), "masks": masks}
    none = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 80, 50, dtype=torch.uint8),
    }
    return [torch.rand(3, 64, 96), torch.rand(3, 80, 50)], [full, none]


def test_detector_is_made_of_the_trunks_own_modules() -> None:
    trunk, model = detector("mask_rcnn")
    assert model.backbone is trunk.backbone
    assert model.roi_heads.box_head is trunk.box_head and model.roi_heads.box_roi_pool is trunk.roi_pool
    assert list(model.transform.image_mean) == list(trunk.config.mean)


@pytest.mark.parametrize(
    ("kind", "head", "neck"), [("faster_rcnn", "2fc", "fpn"), ("mask_rcnn", "4conv1fc", "fpn"), ("mask_rcnn", "", "c4")]
)
def test_losses_are_finite_and_reach_the_whole_trunk(kind: str, head: str, neck: str) -> None:
    trunk, model = detector(kind, head, neck)
    with torch.no_grad():  # zeroed last gammas would stop the gradient inside residual blocks
        for name, parameter in trunk.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(1)
    losses = model.train()(*images_and_targets())
    expected = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == expected | ({"loss_mask"} if kind == "mask_rcnn" else set())
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name, p in trunk.named_parameters() if "layer_blocks" not in name and not p.grad.any()]


def test_images_are_normalised_but_not_resized() -> None:
    _, model = detector()
    images, targets = images_and_targets()
    batch, moved = model.transform(images, targets)
    assert batch.image_sizes == [(64, 96), (80, 50)] and batch.tensors.shape[-2:] == (96, 96)
    assert torch.equal(moved[0]["boxes"], targets[0]["boxes"])
    mean, std = (torch.tensor(values)[:, None, None] for values in (TrunkConfig().mean, TrunkConfig().std))
    torch.testing.assert_close(batch.tensors[0, :, :64, :96], (images[0] - mean) / std)
    at_test, _ = model.eval().transform(images)
    assert at_test.image_sizes == batch.image_sizes and torch.equal(at_test.tensors, batch.tensors)


@pytest.mark.parametrize(("kind", "neck"), [("faster_rcnn", "fpn"), ("mask_rcnn", "c4")])
def test_detections_lie_inside_their_images(kind: str, neck: str) -> None:
    _, model = detector(kind, neck=neck)
    model.roi_heads.score_thresh = 0.0
    images, _ = images_and_targets()
    with torch.no_grad():
        outputs = model.eval()(images)
    for image, output in zip(images, outputs, strict=True):
        height, width = image.shape[-2:]
        boxes = output["boxes"]
        assert len(boxes) and boxes.min() >= 0
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert set(output["labels"].tolist()) <= {1, 2, 3}


def test_c4_detector_is_detectron2s() -> None:
    trunk = Trunk(TrunkConfig("resnet18", neck="c4"))
    model = MaskRCNNConfig().build(trunk, 3)
    assert model.backbone is trunk.backbone and model.roi_heads.box_head.layer4 is trunk.box_head.layer4
    anchors = model.rpn.anchor_generator
    assert anchors.num_anchors_per_location() == [15] and anchors.sizes == ((32, 64, 128, 256, 512),)
    assert model.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert model.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    heads = {name.removeprefix("roi_heads.").split(".layer4")[0] for name in model.state_dict() if "roi_heads" in name}
    assert {"box_head", "box_head.norm.weight", "mask_predictor.conv5_mask.weight"} <= heads
    assert not any(name.startswith("mask_head") for name in heads)  # its weights are the box head's
    assert model.roi_heads.box_predictor.cls_score.in_features == 512
    assert model.roi_heads.mask_predictor(torch.rand(2, 512, 7, 7)).shape == (2, 4, 14, 14)


def test_masks_see_the_box_heads_maps_and_leave_its_statistics_alone() -> None:
    _, model = detector("mask_rcnn", neck="c4")
    pooled = torch.rand(6, 256, 14, 14)
    heads = model.roi_heads.train()
    vectors = heads.box_head(pooled)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    assert heads.mask_head(pooled[:0]).shape == (0, 512, 7, 7)  # an image without objects
    heads.mask_head(pooled[:1])
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())
    assert all(module.training for module in heads.modules())
    assert not torch.equal(heads.box_head(pooled), heads.eval().box_head(pooled))
    torch.testing.assert_close(heads.mask_head(pooled).mean((2, 3)), heads.box_head(pooled))
    assert vectors.shape == (6, 512)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
def test_box_loss_is_smooth_l1_of_the_objects_classes(beta: float) -> None:
    torch.manual_seed(0)
    predicted, offsets = torch.randn(9, 16), torch.randn(9, 4)
    labels = torch.tensor([0, 2, 0, 3, 1, 0, 0, 2, 0])
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        if label:
            for k in range(4):
                distance = abs(float(predicted[row, 4 * label + k]) - float(offsets[row, k]))
                total += distance**2 / (2 * beta) if distance < beta else distance - beta / 2
    assert float(box_loss(predicted, labels, offsets, beta)) == pytest.approx(total / 9, rel=1e-5)
    ninth = fastrcnn_loss(torch.zeros(9, 4), predicted, [labels], [offsets])[1]
    torch.testing.assert_close(box_loss(predicted, labels, offsets, 1 / 9), ninth)
    assert box_loss(predicted, labels * 0, offsets, beta) == 0


@pytest.mark.parametrize(("kind", "neck"), [("faster_rcnn", "fpn"), ("mask_rcnn", "c4")])
def test_beta_changes_the_box_loss_alone(kind: str, neck: str) -> None:
    _, plain = detector(kind, neck=neck)
    _, same = detector(kind, neck=neck, box_beta=1 / 9 + 1e-12)
    _, line = detector(kind, neck=neck, box_beta=0.0)
    assert type(plain.roi_heads) is RoIHeads and type(same.roi_heads) is type(line.roi_heads) is BetaRoIHeads
    found, weights = [], copy.deepcopy(plain.state_dict())
    for model in (plain, same, line):
        model.load_state_dict(weights)
        torch.manual_seed(1)
        found.append(model.train()(*images_and_targets()))
    torch.testing.assert_close(found[1], found[0])
    others = [name for name in found[0] if name != "loss_box_reg"]
    assert all(torch.equal(found[2][name], found[0][name]) for name in others)
    assert found[2]["loss_box_reg"] > found[0]["loss_box_reg"] > 0
    found[2]["loss_box_reg"].backward()
    assert line.roi_heads.box_predictor.bbox_pred.weight.grad.any()
    hooks = [model.roi_heads.box_predictor._forward_hooks.values() for model in (line, plain)]
    assert [*hooks[0]] == [*hooks[1]] and not hasattr(line.roi_heads, "_labels")  # a step leaves nothing behind
    line.eval()(images_and_targets()[0])


def test_detectron2s_pyramid_keeps_fewer_proposals_in_training_alone() -> None:
    _, model = detector(rpn_proposals=2000, rpn_kept=1500)
    assert model.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert model.rpn._post_nms_top_n == {"training": 1500, "testing": 1000}


def test_mask_head_has_the_trunks_norm_where_asked() -> None:
    _, plain = detector("mask_rcnn")
    _, normed = detector("mask_rcnn", mask_norm=True)
    kinds = [type(part) for block in normed.roi_heads.mask_head for part in block]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4
    assert all(block[0].bias is None for block in normed.roi_heads.mask_head)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in plain.roi_heads.mask_head.modules())
    images, targets = images_and_targets()
    losses = normed.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert normed.roi_heads.mask_head[0][1].weight.grad.any()
    before = normed.roi_heads.mask_head[0][1].running_mean.clone()
    nothing = normed(images, [targets[1]] * 2)  # a batch without objects has no statistics
    assert nothing["loss_mask"] == 0 and torch.equal(normed.roi_heads.mask_head[0][1].running_mean, before)
    with pytest.raises(UserError, match=r"detector\.mask_norm: true; masks on C4"):
        detector("mask_rcnn", neck="c4", mask_norm=True)
