"""Whole detectors as weights: what is kept is bit-equal and gives equal outputs; rows of classes go by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection

from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import build_trunk
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.interop.heads import Names, load_heads
from boxless.interop.weights import WeightsReport, load_trunk, trunk_as_in

COCO = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
OWN = ("zebra", "weld", "Dog")
SMALL = TrunkConfig("resnet18", fpn_channels=32, box_head_width=32)


def loaded(
    path: Path, kind: str, classes: tuple[str, ...], given: Names, trunk: TrunkConfig, **settings: Any
) -> tuple[Any, Trunk, WeightsReport]:
    """A new detector in eval mode with all that a file has for it."""
    config = DETECTORS[kind](**settings)
    built = build_trunk(trunk, config)
    report = load_trunk(built, path, 0.99)
    detector = config.build(built, len(classes), 2).eval()
    return detector, built, load_heads(detector, built, report, 0.99, Names(classes, ("head", "tail")), given)


def coco(name: str, path: Path) -> nn.Module:
    """One of torchvision's COCO detectors with weights of its own, and its file."""
    torch.manual_seed(1)
    model: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), path)
    return model.eval()


def trunk_of(path: Path, neck: Any) -> TrunkConfig:
    return trunk_as_in(TrunkConfig("resnet50", neck=neck), path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_torchvisions_two_stage_detectors_keep_rpn_and_heads(name: str, tmp_path: Path) -> None:
    source: Any = coco(name, tmp_path / "coco.pth")
    trunk = trunk_of(tmp_path / "coco.pth", "fpn")
    assert (trunk.fpn_norm, trunk.box_head, trunk.box_head_width) == (False, "2fc", 1024)
    kind = "faster_rcnn" if name.startswith("faster") else "mask_rcnn"
    ours, _, report = loaded(tmp_path / "coco.pth", kind, OWN, Names(), trunk)
    assert "RoI head ok, RPN ok, predictor 2 of 3 classes by name" in str(report)
    assert {report.shares[part] for part in ("backbone", "FPN", "RoI head", "RPN")} == {1.0} and not report.unused
    image, pooled = torch.rand(1, 3, 64, 96), torch.rand(5, 256, 7, 7)
    maps, theirs = ours.backbone(image), source.backbone(image)
    for level in theirs:
        torch.testing.assert_close(maps[level], theirs[level], atol=1e-5, rtol=1e-5)
    levels = [list(each.values()) for each in (maps, theirs)]
    for one, other in zip(ours.rpn.head(levels[0]), source.rpn.head(levels[1]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    features = ours.roi_heads.box_head(pooled), source.roi_heads.box_head(pooled)
    torch.testing.assert_close(*features, atol=1e-5, rtol=1e-5)
    scores, boxes = ours.roi_heads.box_predictor(features[0])
    wanted, places = source.roi_heads.box_predictor(features[1])
    rows = [0, COCO.index("zebra"), COCO.index("dog")]
    torch.testing.assert_close(scores[:, [0, 1, 3]], wanted[:, rows], atol=1e-5, rtol=1e-5)
    places = places.view(5, 91, 4)
    torch.testing.assert_close(boxes.view(5, 4, 4)[:, [0, 1, 3]], places[:, rows], atol=1e-5, rtol=1e-5)
    known = [place for place, category in enumerate(COCO) if place and category != "N/A"]
    torch.testing.assert_close(boxes.view(5, 4, 4)[:, 2], places[:, known].mean(1), atol=1e-5, rtol=1e-5)
    if kind == "mask_rcnn":
        masks, crops = ours.roi_heads, torch.rand(2, 256, 14, 14)
        mask = masks.mask_predictor(masks.mask_head(crops))[:, [1, 3]]
        theirs = source.roi_heads.mask_predictor(source.roi_heads.mask_head(crops))[:, rows[1:]]
        torch.testing.assert_close(mask, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "anchors"), [("retinanet_resnet50_fpn", 9), ("fcos_resnet50_fpn", 1)])
def test_torchvisions_one_stage_detectors_keep_their_towers(name: str, anchors: int, tmp_path: Path) -> None:
    source: Any = coco(name, tmp_path / "coco.pth")
    ours, _, report = loaded(
        tmp_path / "coco.pth", name.partition("_")[0], OWN, Names(), trunk_of(tmp_path / "coco.pth", "fpn_p3")
    )
    assert "class branch ok" in str(report) and "box branch ok" in str(report)
    maps = [torch.rand(1, 256, 8, 8)]
    found, wanted = ours.head(maps), source.head(maps)
    assert found["cls_logits"].shape == (1, 64 * anchors, 3)
    rows = [COCO.index("zebra"), COCO.index("dog")]
    torch.testing.assert_close(found["cls_logits"][..., [0, 2]], wanted["cls_logits"][..., rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["bbox_regression"], wanted["bbox_regression"], atol=1e-5, rtol=1e-5)
    image = torch.rand(1, 3, 64, 96)
    count = 3 if name.startswith("retinanet") else 5  # P6 and P7 are made from another map there
    levels = [list(each.backbone(image).values())[:count] for each in (ours, source)]
    torch.testing.assert_close(*levels, atol=1e-5, rtol=1e-5)


def test_parts_of_another_shape_are_new_and_said(tmp_path: Path) -> None:
    coco("fasterrcnn_resnet50_fpn_v2", tmp_path / "coco.pth")
    trunk = trunk_of(tmp_path / "coco.pth", "fpn")
    assert (trunk.fpn_norm, trunk.box_head) == (True, "4conv1fc")
    _, _, report = loaded(tmp_path / "coco.pth", "faster_rcnn", OWN, Names(), trunk)
    assert report.shares["RoI head"] == 1 and report.shares["RPN"] == 0
    assert "RPN: rpn.head.conv.1.0.weight is (256, 256, 3, 3) in the file, missing here" in str(report)


def test_heads_are_new_behind_a_new_pyramid_and_the_key_is_named(tmp_path: Path) -> None:
    coco("fasterrcnn_resnet50_fpn", tmp_path / "coco.pth")
    normed = TrunkConfig("resnet50", box_head="2fc")
    _, _, report = loaded(tmp_path / "coco.pth", "faster_rcnn", OWN, Names(), normed)
    assert (report.shares["FPN"], report.shares["RPN"], report.shares["predictor"]) == (0, 0, 0)
    assert "--trunk.fpn_norm false loads it" in str(report) and "all heads are new too" in str(report)
    source = DETECTORS["faster_rcnn"]().build(Trunk(SMALL), 2)
    torch.save(source.state_dict(), tmp_path / "normed.pth")
    plain = TrunkConfig("resnet18", fpn_channels=32, box_head_width=32, fpn_norm=False)
    _, _, report = loaded(tmp_path / "normed.pth", "faster_rcnn", OWN, Names(), plain)
    assert report.shares["FPN"] == 0 and "--trunk.fpn_norm true loads it" in str(report)


@pytest.mark.parametrize("kind", ["faster_rcnn", "keypoint_rcnn", "retinanet", "detr", "rt_detr", "sparse_rcnn", "fcn"])
def test_classes_in_another_order_find_their_rows(kind: str, tmp_path: Path) -> None:
    """The order is turned there and back again: everything is bit-equal to the first detector."""
    if kind == "rt_detr":
        pytest.importorskip("transformers", reason="transformers is not installed: pip install 'boxless[detr]'")
    config, keypoints = DETECTORS[kind](), ("head", "tail")
    trunk = TrunkConfig("resnet18", fpn_channels=32, box_head_width=32, neck=config.necks[0])
    torch.manual_seed(0)
    first = config.build(build_trunk(trunk, config), 3, 2)
    torch.save(first.state_dict(), tmp_path / "first.pth")
    turned, _, report = loaded(tmp_path / "first.pth", kind, ("c", "a", "b"), Names(("a", "b", "c"), keypoints), trunk)
    assert set(report.shares.values()) == {1.0} and report.parameter_share == 1 and report.loaded == report.total
    assert any(not torch.equal(value, first.state_dict()[key]) for key, value in turned.state_dict().items())
    torch.save(turned.state_dict(), tmp_path / "turned.pth")
    back, _, _ = loaded(tmp_path / "turned.pth", kind, ("a", "b", "c"), Names(("c", "a", "b"), keypoints), trunk)
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in back.state_dict().items())


def test_another_kind_of_detector_and_unnamed_classes_are_said(tmp_path: Path) -> None:
    torch.save(DETECTORS["faster_rcnn"]().build(Trunk(SMALL), 2).state_dict(), tmp_path / "two.pth")
    p3 = TrunkConfig("resnet18", fpn_channels=32, neck="fpn_p3")
    _, _, report = loaded(tmp_path / "two.pth", "retinanet", OWN, Names(), p3)
    assert "another kind of detector (two-stage), so that all heads are new (RetinaNet)" in str(report)
    detector, _, report = loaded(tmp_path / "two.pth", "faster_rcnn", OWN, Names(), SMALL)
    assert "the file does not name its 2 classes, so all are new" in str(report) and report.shares["RPN"] == 1
    background = torch.load(tmp_path / "two.pth")["roi_heads.box_predictor.cls_score.bias"][0]
    assert detector.roi_heads.box_predictor.cls_score.bias[0] == background


def test_names_before_torchvision_0_13_are_known(tmp_path: Path) -> None:
    source = coco("retinanet_resnet50_fpn", tmp_path / "new.pth").state_dict()
    old = {key.replace("_blocks.0.0.", "_blocks.0."): value for key, value in source.items()}
    for number in (3, 2, 1, 0):
        for branch in ("classification", "regression"):
            new, before = (f"head.{branch}_head.conv.{place}." for place in (f"{number}.0", str(2 * number)))
            old = {key.replace(new, before): value for key, value in old.items()}
    torch.save(old, tmp_path / "old.pth")
    _, _, report = loaded(tmp_path / "old.pth", "retinanet", OWN, Names(), trunk_of(tmp_path / "old.pth", "fpn_p3"))
    assert report.shares["class branch"] == report.shares["box branch"] == report.shares["backbone"] == 1
