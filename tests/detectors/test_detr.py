from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import keep_above
from boxless.detectors.detr import DETR, DETRConfig
from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.interop.weights import load_trunk

SMALL = TrunkConfig(
    "resnet18", neck="transformer", transformer=TransformerConfig(32, 4, 2, 2, 64, dropout=0.0, queries=9)
)
CONFIG = DETRConfig(score_threshold=0.0)


def detector() -> tuple[Trunk, DETR]:
    torch.manual_seed(0)
    trunk = Trunk(SMALL)
    model = CONFIG.build(trunk, 3)
    assert isinstance(model, DETR)
    return trunk, model


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    full = {"boxes": torch.tensor([[5.0, 10, 60, 40], [0, 0, 20, 20]]), "labels": torch.tensor([2, 3])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [torch.rand(3, 64, 96), torch.rand(3, 80, 50)], [full, none]


def test_losses_reach_the_whole_trunk() -> None:
    trunk, model = detector()
    with torch.no_grad():  # zeroed last gammas would stop the gradient inside residual blocks
        for name, parameter in trunk.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(1)
    losses = model.train()(*images_and_targets())
    assert set(losses) == {"loss_classes", "loss_l1", "loss_giou"}
    torch.stack(list(losses.values())).sum().backward()
    silent = ("decoder.layers.0.self_attn", ".k_proj.bias")  # see NO_GRADIENT of the methods' contract
    missing = [
        name for name, p in model.named_parameters() if not p.grad.any() and not any(key in name for key in silent)
    ]
    assert missing == []
    assert all(value.isfinite() for value in model(images_and_targets()[0], [images_and_targets()[1][1]] * 2).values())


def test_boxes_and_labels_are_of_each_image_and_not_of_the_padded_batch() -> None:
    _, model = detector()
    with torch.no_grad():  # every query sees class 2 of 3 in the middle half of the image
        for layer in (model.transformer.bbox_predictor.layers[-1], model.class_labels_classifier):
            layer.weight.zero_()
            layer.bias.zero_()
        model.class_labels_classifier.bias[1] = 5
        found = model.eval()(images_and_targets()[0])
    for one, (height, width) in zip(found, [(64, 96), (80, 50)], strict=True):
        middle = torch.tensor([width / 4, height / 4, 3 * width / 4, 3 * height / 4])
        torch.testing.assert_close(one["boxes"], middle.expand(9, 4))
        assert one["labels"].tolist() == [2] * 9
        torch.testing.assert_close(one["scores"], torch.tensor([0, 5.0, 0, 0]).softmax(0)[1].expand(9))


def test_loss_is_none_for_a_detector_that_is_right() -> None:
    _, model = detector()
    images, _ = images_and_targets()
    middle = [{"boxes": torch.tensor([[24.0, 16, 72, 48]]), "labels": torch.tensor([2])}]
    with torch.no_grad():
        for layer in (model.transformer.bbox_predictor.layers[-1], model.class_labels_classifier):
            layer.weight.zero_()
            layer.bias.zero_()
        losses = model.train()(images[:1], middle)
    assert losses["loss_l1"] == 0 and losses["loss_giou"].abs() < 1e-5


def test_only_the_surest_are_given_and_sorted() -> None:
    _, model = detector()
    images, _ = images_and_targets()
    with torch.no_grad():
        everything = model.eval()(images)[0]["scores"]
        assert everything.tolist() == sorted(everything.tolist(), reverse=True)
        keep_above(model, float(everything[3]))
        assert torch.equal(model(images)[0]["scores"], everything[:3])


def test_detector_is_a_source_of_weights_for_trunks(tmp_path: Path) -> None:
    _, model = detector()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    report = load_trunk(Trunk(SMALL), tmp_path / "w.safetensors", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "transformer": 1.0} and report.parameter_share == 1
    assert all(key.startswith("class_labels_classifier") for key in report.unused)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "detr"])
def test_each_kind_gets_a_neck_that_fits(kind: str) -> None:
    trunks = [TrunkConfig(neck="fpn"), TrunkConfig(neck="c4"), TrunkConfig(neck="transformer")]
    necks = {trunk.neck: with_neck(trunk, DETECTORS[kind].necks).neck for trunk in trunks}
    other = {"fpn": "fpn", "c4": "c4", "transformer": "fpn"}
    assert necks == (dict.fromkeys(necks, "transformer") if kind == "detr" else other)
