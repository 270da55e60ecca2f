"""Objects that are ignored are neither learned nor background; all else is learned as without them."""

import pytest
import torch

from boxless.detectors.detector import build_trunk
from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig, with_neck
from boxless.detectors.two_stage import FasterRCNNConfig, MaskRCNNConfig

KNOWN, OTHER = [8.0, 8.0, 40.0, 40.0], [64.0, 64.0, 104.0, 112.0]


def built(config):
    torch.manual_seed(0)
    trunk_config = with_neck(TrunkConfig(backbone="resnet18", fpn_channels=64, box_head_width=32), config.necks)
    return config.build(build_trunk(trunk_config, config), 2).train()


def target(ignored):
    """Two objects, of which the second is labelled, ignored or left out."""
    boxes, labels = torch.tensor([KNOWN, OTHER]), torch.tensor([1, 2])
    if ignored is None:
        return {"boxes": boxes[:1], "labels": labels[:1]}
    if ignored:
        return {"boxes": boxes, "labels": torch.tensor([1, -1]), "ignored": torch.tensor([False, True])}
    return {"boxes": boxes, "labels": labels}


@pytest.mark.parametrize("config", [RetinaNetConfig(), RetinaNetConfig(loss_normalizer="moving_average"), FCOSConfig()])
def test_one_stage_classes_learn_nothing_at_places_of_an_ignored_object(config):
    detector = built(config)
    images, _ = detector.transform([torch.zeros(3, 128, 128)])
    maps = list(detector.backbone(images.tensors).values())
    outputs = {name: value.detach() for name, value in detector.head(maps).items()}
    anchors = detector.anchor_generator(images, maps)
    sizes = [[m.shape[-2] * m.shape[-1] for m in maps]] if isinstance(config, FCOSConfig) else []

    def gradient(ignored):
        for average in detector.head.buffers():  # of objects, which changes with each loss
            average.fill_(100.0)
        own = {name: value.clone().requires_grad_() for name, value in outputs.items()}
        losses = detector.compute_loss([target(ignored)], own, anchors, *sizes)
        losses["classification"].backward()
        return own["cls_logits"].grad[0], losses

    left_out, alone = gradient(None)
    hidden, losses = gradient(True)
    learned, _ = gradient(False)
    of_other = (learned[:, 1] < 0) & (left_out[:, 1] > 0)  # the places where it is an object if it is labelled
    assert of_other.any() and not hidden[of_other].any()
    elsewhere = hidden.any(1)
    assert elsewhere.any() and torch.allclose(hidden[elsewhere], left_out[elsewhere], atol=1e-7)
    assert losses["bbox_regression"].item() == pytest.approx(alone["bbox_regression"].item(), rel=1e-4)
    assert losses["classification"] < alone["classification"]


def test_two_stage_samples_are_neither_objects_nor_background_on_an_ignored_object():
    detector = built(FasterRCNNConfig())
    images, _ = detector.transform([torch.zeros(3, 128, 128)])
    anchors = detector.rpn.anchor_generator(images, list(detector.backbone(images.tensors).values()))
    (left_out,), (hidden,), (learned,) = (
        detector.rpn.assign_targets_to_anchors(anchors, [target(ignored)])[0] for ignored in (None, True, False)
    )
    of_other = (learned == 1) & (left_out == 0)
    assert of_other.any() and (hidden[of_other] == -1).all()
    assert (hidden[left_out == 1] == 1).all() and (hidden[hidden != -1] == left_out[hidden != -1]).all()
    some, places = target(True), torch.tensor([KNOWN, OTHER, [0.0, 100.0, 20.0, 120.0]])
    _, labels = detector.roi_heads.assign_targets_to_proposals([places], [some["boxes"]], [some["labels"]])
    assert labels[0].tolist() == [1, -1, 0]


@pytest.mark.parametrize("config", [FasterRCNNConfig(), MaskRCNNConfig(), RetinaNetConfig(), FCOSConfig()])
def test_an_image_of_ignored_objects_alone_can_be_learned_from(config):
    nothing = {"boxes": torch.tensor([OTHER]), "labels": torch.tensor([-1]), "ignored": torch.tensor([True])}
    if config.targets == "masks":
        nothing["masks"] = torch.ones(1, 128, 128, dtype=torch.uint8)
    losses = built(config)([torch.rand(3, 128, 128)], [nothing])
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
