import copy

import torch
from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from boxless.detectors.detector import keep_above
from boxless.detectors.trunk import RoIPool, Trunk, TrunkConfig
from boxless.detectors.two_stage import KeypointRCNNConfig

POINTS = 5


def detector() -> tuple[Trunk, nn.Module]:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if name.endswith("bn2.weight"):  # zeroed last gammas would stop the gradient inside residual blocks
                parameter.fill_(1)
    config = KeypointRCNNConfig(rpn_samples=32, rpn_proposals=30, roi_samples=64, detections=20)
    return trunk, config.build(trunk, 2, keypoints=POINTS)


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    boxes = torch.tensor([[5.0, 10, 60, 40], [0, 0, 90, 60]])
    points = torch.cat([torch.rand(2, POINTS, 2) * 20 + boxes[:, None, :2] + 10, torch.ones(2, POINTS, 1)], -1)
    points[1] = 0  # an object of another class, without keypoints
    full = {"boxes": boxes, "labels": torch.tensor([2, 1]), "keypoints": points}
    none = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "keypoints": torch.zeros(0, POINTS, 3),
    }
    return [torch.rand(3, 64, 96), torch.rand(3, 80, 50)], [full, none]


def torchvisions(model: nn.Module) -> nn.Module:
    other = KeypointRCNN(
        copy.deepcopy(model.backbone),
        box_roi_pool=RoIPool(),
        box_head=copy.deepcopy(model.roi_heads.box_head),
        box_predictor=copy.deepcopy(model.roi_heads.box_predictor),
        keypoint_roi_pool=RoIPool(14),
        keypoint_head=KeypointRCNNHeads(16, (32,) * 8),
        keypoint_predictor=KeypointRCNNPredictor(32, POINTS),
        rpn_batch_size_per_image=32,
        rpn_pre_nms_top_n_train=30,
        rpn_post_nms_top_n_train=30,
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=20,
        rpn_anchor_generator=copy.deepcopy(model.rpn.anchor_generator),
        box_batch_size_per_image=64,
        box_score_thresh=0.0,
        box_detections_per_img=20,
    )
    other.load_state_dict(model.state_dict())
    other.transform = copy.deepcopy(model.transform)
    return other


def test_losses_and_keypoints_are_torchvisions() -> None:
    _, model = detector()
    other = torchvisions(model)
    images, targets = images_and_targets()
    losses = []
    for one in (model.train(), other.train()):
        torch.manual_seed(2)  # of the samples of anchors and boxes
        losses.append(one(images, targets))
    assert set(losses[0]) == set(losses[1]) and losses[0]["loss_keypoint"] > 1
    torch.testing.assert_close(losses[0], losses[1])
    keep_above(model, 0.0)
    with torch.no_grad():
        ours, theirs = model.eval()(images), other.eval()(images)
    torch.testing.assert_close(ours, theirs)
    assert ours[0]["keypoints"].shape == (len(ours[0]["boxes"]), POINTS, 3) and len(ours[0]["boxes"]) > 0


def test_gradients_reach_everything_and_no_keypoint_is_no_loss() -> None:
    trunk, model = detector()
    images, targets = images_and_targets()
    losses = model.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.any() for p in trunk.backbone.fpn.inner_blocks[0].parameters())
    assert all(p.grad.any() for name, p in model.roi_heads.named_parameters() if name.startswith("keypoint"))
    unlabelled = [{**target, "keypoints": torch.zeros_like(target["keypoints"])} for target in targets]
    assert model(images, unlabelled)["loss_keypoint"] == 0


def test_heads_have_the_papers_proportions_and_heatmaps_full_precision() -> None:
    _, model = detector()
    convolutions = [m for m in model.roi_heads.keypoint_head if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [2 * 16] * 8  # the paper: 512 on a pyramid of 256
    maps = torch.rand(2, 32, 14, 14, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        heatmaps = model.to(memory_format=torch.channels_last).roi_heads.keypoint_predictor(maps)
    assert heatmaps.dtype == torch.float32 and heatmaps.shape == (2, POINTS, 56, 56) and heatmaps.is_contiguous()


def test_nothing_found_has_no_keypoints() -> None:
    _, model = detector()
    keep_above(model, 1.0)
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, 64, 96)])
    assert found["keypoints"].shape[0] == 0
