import pytest
import torch
from torch import Tensor

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.detectors.two_stage import DetectorConfig, two_stage


def detector(kind: str = "faster_rcnn", head: str = "4conv1fc") -> tuple[Trunk, torch.nn.Module]:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head=head, box_head_width=32))  # type: ignore[arg-type]
    config = DetectorConfig(kind, rpn_samples=32, rpn_proposals=30, roi_samples=16, detections=20)  # type: ignore[arg-type]
    return trunk, two_stage(trunk, 3, config)


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


@pytest.mark.parametrize(("kind", "head"), [("faster_rcnn", "2fc"), ("mask_rcnn", "4conv1fc")])
def test_losses_are_finite_and_reach_the_whole_trunk(kind: str, head: str) -> None:
    trunk, model = detector(kind, head)
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


def test_detections_lie_inside_their_images() -> None:
    _, model = detector()
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
