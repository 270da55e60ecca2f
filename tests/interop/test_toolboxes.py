"""Detectron2 and MMDetection, which cannot be installed here: names and shapes by manifests, meaning by arithmetic."""

import math
import sys
import warnings
from typing import Any
from unittest.mock import MagicMock

import manifests
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d
from torchvision.models.detection.anchor_utils import AnchorGenerator

from boxless.detectors.all import DETECTORS
from boxless.detectors.detector import DetectorConfig, build_trunk
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.detectors.two_stage import MaskRCNNConfig
from boxless.interop import detectron2, mmdetection
from boxless.interop.exported import Exported
from boxless.interop.files import converted
from boxless.interop.weights import load_trunk

WHOLE = {"fpn": ("mask_rcnn", "fpn"), "c4": ("mask_rcnn", "c4"), "retinanet": ("retinanet", "fpn")}
KINDS = {**WHOLE, "keypoints": ("keypoint_rcnn", "fpn")}
LIBRARIES = {"detectron2": detectron2, "mmdetection": mmdetection}


def configs(name: str, **trunk: Any) -> tuple[TrunkConfig, DetectorConfig]:
    kind, neck = KINDS[name]
    config = MaskRCNNConfig(mask_norm=True) if name == "fpn" else DETECTORS[kind]()
    return with_neck(TrunkConfig(**{"neck": neck, **trunk}), config.necks), config


def detector(name: str, classes: int = manifests.CLASSES, **trunk: Any) -> nn.Module:
    settings, config = configs(name, **trunk)
    return config.build(build_trunk(settings, config), classes, manifests.KEYPOINTS)


def small(name: str, **trunk: Any) -> dict[str, Tensor]:
    """Tensors of a small detector, each of them unlike any other's."""
    torch.manual_seed(0)
    model = detector(name, 3, backbone="resnet18", fpn_channels=16, box_head_width=32, **trunk)
    return {key: torch.rand_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_is_where_the_library_expects_it(name: str, library: str) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation of what has no storage
        tensors = detector(name).state_dict()
    module: Any = LIBRARIES[library]
    named, left = module.from_torchvision(tensors)
    shapes = {key: tuple(value.shape) for key, value in named.items() if "num_batches" not in key}
    assert not left and shapes == getattr(manifests, f"{library}_{name}")()
    assert len([key for key in manifests.mmdetection_body()]) == 265


class Settings(dict[str, Any]):
    """A library's, read and set as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self.setdefault(name, Settings())

    __missing__ = __getattr__
    __setattr__ = dict.__setitem__


def of_mmdetection(retinanet: bool) -> Settings:
    """The widths in its configurations of ResNet-50 with a pyramid."""
    usual = {"in_channels": 256, "feat_channels": 256}
    extractor = {"out_channels": 256}
    heads = {
        "bbox_roi_extractor": Settings(extractor),
        "bbox_head": Settings(in_channels=256, conv_out_channels=256, fc_out_channels=1024),
        "mask_roi_extractor": Settings(extractor),
        "mask_head": Settings(in_channels=256, conv_out_channels=256),
    }
    parts = {"bbox_head": Settings(usual)} if retinanet else {"rpn_head": Settings(usual), "roi_head": Settings(heads)}
    return Settings(model=Settings(neck=Settings(out_channels=256), **parts))


def of_detectron2(_: bool) -> Settings:
    """The widths in its defaults."""
    widths = {"FPN": {"OUT_CHANNELS": 256}, "ROI_BOX_HEAD": {"CONV_DIM": 256, "FC_DIM": 1024}}
    widths |= {"ROI_MASK_HEAD": {"CONV_DIM": 256}, "ROI_KEYPOINT_HEAD": {"CONV_DIMS": [512] * 8}}  # type: ignore[dict-item]
    return Settings(MODEL=Settings({name: Settings(part) for name, part in widths.items()}))


def built(text: str, library: str, monkeypatch: pytest.MonkeyPatch) -> manifests.Shapes:
    """The network that the lines of a text make in a library, by the widths that its settings have then."""
    made: list[tuple[str, Settings]] = []

    def named(name: str) -> Settings:
        made.append((name, {"mmdetection": of_mmdetection, "detectron2": of_detectron2}[library]("retinanet" in name)))
        return made[-1][1]

    for module in ("mmdet", "mmdet.apis", "mmengine", "mmengine.hub"):
        monkeypatch.setitem(sys.modules, module, MagicMock(get_config=named))
    for module in ("detectron2", "detectron2.checkpoint", "detectron2.engine", "detectron2.modeling"):
        monkeypatch.setitem(sys.modules, module, MagicMock(model_zoo=MagicMock(get_config=named)))
    exec(text, {})
    ((name, settings),) = made
    if library == "detectron2":
        model = settings.MODEL
        if "retinanet" in name:
            return manifests.detectron2_retinanet(model.FPN.OUT_CHANNELS)
        widths = (model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.CONV_DIM, model.ROI_BOX_HEAD.FC_DIM)
        if "keypoint" in name:
            return manifests.detectron2_keypoints(*widths, model.ROI_KEYPOINT_HEAD.CONV_DIMS)
        return manifests.detectron2_fpn(*widths, model.ROI_MASK_HEAD.CONV_DIM)
    model, pyramid = settings.model, settings.model.neck.out_channels
    if "retinanet" in name:
        assert model.bbox_head.in_channels == pyramid
        return manifests.mmdetection_retinanet(pyramid, model.bbox_head.feat_channels)
    heads = model.roi_head
    taken = {part.in_channels for part in (model.rpn_head, heads.bbox_head)} | {heads.bbox_roi_extractor.out_channels}
    if "mask" in name:
        taken |= {heads.mask_head.in_channels, heads.mask_roi_extractor.out_channels}
    assert taken == {pyramid}
    own = (model.rpn_head.feat_channels, heads.bbox_head.conv_out_channels, heads.bbox_head.fc_out_channels)
    return manifests.mmdetection_fpn(pyramid, *own, heads.mask_head.conv_out_channels)


TEXTS = [(library, name) for library in LIBRARIES for name in ("fpn", "retinanet")] + [("detectron2", "keypoints")]


@pytest.mark.parametrize("pretrained", [False, True], ids=["detector", "trunk"])
@pytest.mark.parametrize(("library", "name"), TEXTS)
def test_the_text_makes_the_network_that_the_file_is_of(
    library: str, name: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = LIBRARIES[library]
    trunk, config = configs(name, fpn_channels=32, box_head_width=96)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = (Trunk(trunk) if pretrained else detector(name, fpn_channels=32, box_head_width=96)).state_dict()
    if pretrained:
        tensors = {f"roi_heads.{key}" if key.startswith("box_head") else key: v for key, v in tensors.items()}
    classes = tuple(str(number) for number in range(manifests.CLASSES))
    text = module.how_to_load(Exported("file", trunk, None if pretrained else config, classes, manifests.KEYPOINTS))
    named, _ = module.from_torchvision(tensors)
    shapes = {key: tuple(value.shape) for key, value in named.items() if "num_batches" not in key}
    there = built(text, library, monkeypatch)
    assert {key: there.get(key) for key in shapes} == shapes
    assert pretrained or there.keys() == shapes.keys()


ROUNDS: list[tuple[str, dict[str, str]]] = [
    *((name, {}) for name in WHOLE),
    ("fpn", {"box_head": "2fc", "norm": "frozen"}),
    ("c4", {"norm": "group"}),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("name", "trunk"), ROUNDS, ids=str)
def test_there_and_back_is_bit_equal(name: str, library: str, trunk: dict[str, str]) -> None:
    module, own = LIBRARIES[library], small(name, **trunk)
    named, left = module.from_torchvision(own)
    back, unknown = module.to_torchvision(named)
    assert not left and not unknown and back.keys() == own.keys()
    for key, value in own.items():
        rows = 4 if "box_predictor.bbox_pred" in key else 1 if "mask_fcn_logits" in key else 0  # of background
        assert torch.equal(back[key][rows:] if rows else back[key], value[rows:] if rows else value), key
        assert not rows or not back[key][:rows].any(), key
    again, _ = module.from_torchvision(back)
    assert all(torch.equal(again[key], value) for key, value in named.items())


@pytest.mark.parametrize("name", ["c4", "retinanet"])
def test_rows_of_anchors_are_in_detectron2s_order(name: str) -> None:
    sizes, ratios = (32, 64, 128, 256, 512) if name == "c4" else (32, 40, 50), (0.5, 1.0, 2.0)
    ours = AnchorGenerator((sizes,), (ratios,)).cell_anchors[0]
    theirs = []  # its `generate_cell_anchors`
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            theirs.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    logits, deltas = {
        "c4": ("rpn.head.cls_logits.bias", "rpn.head.bbox_pred.bias"),
        "retinanet": ("head.classification_head.cls_logits.bias", "head.regression_head.bbox_reg.bias"),
    }[name]
    tensors = small(name)
    tensors[deltas] = ours.flatten()  # so that every anchor's row says which anchor it is of
    classes = 1 if name == "c4" else 3
    tensors[logits] = (ours[:, 2:].prod(1)[:, None] + torch.arange(classes)).flatten()
    named, _ = detectron2.from_torchvision(tensors)
    found = named["proposal_generator.rpn_head.anchor_deltas.bias" if name == "c4" else "head.bbox_pred.bias"]
    scores = named["proposal_generator.rpn_head.objectness_logits.bias" if name == "c4" else "head.cls_score.bias"]
    assert (found.view(-1, 4) - torch.tensor(theirs)).abs().max() <= 0.5  # torchvision rounds
    assert torch.equal(scores.view(-1, classes)[:, 0], found.view(-1, 4)[:, 2:].prod(1))


@pytest.mark.parametrize("library", LIBRARIES)
def test_background_is_the_last_row(library: str) -> None:
    tensors = small("fpn")
    tensors["roi_heads.box_predictor.cls_score.bias"] = torch.tensor([9.0, 1, 2, 3])
    tensors["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(4.0).repeat_interleave(4)
    tensors["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.tensor([9.0, 1, 2, 3])
    named, _ = LIBRARIES[library].from_torchvision(tensors)  # type: ignore[attr-defined]
    box, mask = {
        "detectron2": ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.bias"),
        "mmdetection": ("roi_head.bbox_head.", "roi_head.mask_head.conv_logits.bias"),
    }[library]
    scores, deltas = ("cls_score", "bbox_pred") if library == "detectron2" else ("fc_cls", "fc_reg")
    assert named[f"{box}{scores}.bias"].tolist() == [1, 2, 3, 9]
    assert named[f"{box}{deltas}.bias"].view(-1, 4)[:, 0].tolist() == [1, 2, 3]
    assert named[mask].tolist() == [1, 2, 3]


def test_norms_behind_p6_only_add_its_bias() -> None:
    own = small("retinanet")
    named, _ = mmdetection.from_torchvision(own)
    image = torch.rand(1, 512, 8, 8)
    expected = conv2d(image, own["backbone.fpn.extra_blocks.p6.weight"], own["backbone.fpn.extra_blocks.p6.bias"], 2, 1)
    norm = {part: named[f"neck.fpn_convs.3.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
    plain = conv2d(image, named["neck.fpn_convs.3.conv.weight"], None, 2, 1)
    given = batch_norm(plain, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"])
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_whole_trunk_comes_back_through_the_file(library: str, tmp_path: Any) -> None:
    own, module = small("fpn"), LIBRARIES[library]
    named, _ = module.from_torchvision(own)  # type: ignore[attr-defined]
    path = tmp_path / f"file.{'pkl' if library == 'detectron2' else 'pth'}"
    path.write_bytes(detectron2.pickled(named) if library == "detectron2" else mmdetection.saved(named, ["a"]))
    if library == "detectron2":
        from safetensors.torch import save_file

        tensors, _ = converted(path)
        path = path.with_suffix(".safetensors")
        save_file(tensors, path)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    report = load_trunk(trunk, path, 1.0)
    assert report.parameter_share == 1 and {"detectron2": "Detectron2", "mmdetection": "MMDetection"}[library] in str(
        report
    )
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, own[f"roi_heads.{key}" if "box_head" in key else key]), key
