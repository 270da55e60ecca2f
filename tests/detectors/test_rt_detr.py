import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import RTDetrImageProcessor
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2ForObjectDetection, RTDetrV2Model

from boxless.detectors.detector import build_trunk, keep_above
from boxless.detectors.hybrid_encoder import HybridConfig, library
from boxless.detectors.rt_detr import RTDETR, RTDETRConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.errors import UserError
from boxless.tasks.finetune import save_detector

SIZES = HybridConfig(heads=4, feedforward=24, expansion=0.5)
SMALL = TrunkConfig("resnet18", neck="hybrid", fpn_channels=16, box_head_width=8, hybrid=SIZES)
CONFIG = RTDETRConfig(queries=12, layers=2, denoising=10, score_threshold=0.0, detections=12)
CLASSES = 3


def small(config: RTDETRConfig = CONFIG, spread: float = 0.0) -> RTDETR:
    """A small detector; with `spread`, nothing in it is as it began, so that boxes and scores differ."""
    torch.manual_seed(0)
    model = config.build(build_trunk(SMALL, config), CLASSES)
    assert isinstance(model, RTDETR)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    full = {"boxes": torch.tensor([[5.0, 10, 60, 40], [0, 0, 20, 20]]), "labels": torch.tensor([2, 3])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [torch.rand(3, *size, generator=generator) for size in ((64, 96), (80, 50))], [full, none]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("size", [(64, 96), (112, 112), (75, 41)])
def test_levels_double_and_cover_the_image(size: tuple[int, int]) -> None:
    trunk = Trunk(SMALL).eval()
    maps = trunk.pyramid(torch.rand(2, 3, *size))
    rows, columns = -(-size[0] // 32), -(-size[1] // 32)
    assert [(name, tuple(one.shape)) for name, one in maps.items()] == [
        (str(number), (2, 16, times * rows, times * columns)) for number, times in enumerate((4, 2, 1))
    ]
    assert (trunk.roi_pool.first, trunk.roi_pool.last) == (3, 5)
    rois = torch.tensor([[0.0, 4, 4, 30, 30], [1, 0, 0, 40, 40]])
    pooled = trunk.roi_pool.pool(maps, rois, torch.tensor([2, 5]), size)
    assert trunk.box_head(pooled).shape == (2, 8)


@pytest.mark.parametrize("training", [False, True])
def test_encoder_is_that_of_the_library(training: bool) -> None:
    torch.manual_seed(0)
    trunk = Trunk(SMALL)
    _, settings = library(16, SIZES, num_labels=CLASSES)
    settings.backbone_config.hidden_sizes = list(trunk.body_widths)  # of the library's own body, which is not used
    theirs = RTDetrV2Model(settings)
    own = trunk.backbone.fpn.state_dict()
    missing = theirs.load_state_dict(own, strict=False).missing_keys
    assert not [key for key in missing if key.startswith("encoder")]
    for module in (trunk, theirs):
        module.train(training)
    stages = trunk.backbone.body(torch.rand(2, 3, 64, 96))
    wanted = theirs.encoder(
        [project(one) for project, one in zip(theirs.encoder_input_proj, list(stages.values())[1:], strict=True)]
    ).last_hidden_state
    found = trunk.backbone.fpn(stages)
    for one, other in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("norm", "kind"), [("group", "GroupNorm"), ("frozen", "FrozenBatchNorm2d")])
def test_norms_are_the_trunks(norm: str, kind: str) -> None:
    trunk = build_trunk(TrunkConfig(**{**vars(SMALL), "norm": norm}), CONFIG)
    modules = [type(module).__name__ for module in CONFIG.build(trunk, CLASSES).modules()]
    assert kind in modules and "BatchNorm2d" not in modules


def test_layers_start_as_in_the_authors_code() -> None:
    model = small().rt_detr
    assert model.enc_score_head.bias.sigmoid().detach() == pytest.approx(0.01)
    assert not any(head.layers[-1].weight.any() for head in (model.enc_bbox_head, *model.decoder.bbox_embed))
    scales = [key for key, p in Trunk(SMALL).backbone.fpn.named_parameters() if "norm.weight" in key and (p != 1).any()]
    assert scales == []
    offsets = model.decoder.layers[0].encoder_attn.sampling_offsets
    assert not offsets.weight.any() and offsets.bias.abs().max() == 4  # the fourth point is four steps away


def reference(model: RTDETR) -> Any:
    """The library's whole detector with the same decoder."""
    _, settings = library(16, SIZES, num_labels=CLASSES, num_queries=12, decoder_layers=2, num_denoising=10)
    theirs = RTDetrV2ForObjectDetection(settings)
    missing, unexpected = theirs.model.load_state_dict(model.rt_detr.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(("backbone", "encoder")) for key in missing)
    return theirs


@pytest.mark.parametrize("empty", [False, True])
def test_losses_are_the_librarys(empty: bool) -> None:
    model, (images, targets) = small(spread=0.05).train(), images_and_targets()
    theirs = reference(model).train()
    if not empty:
        targets[1] = {"boxes": torch.tensor([[4.0, 4, 30, 70]]), "labels": torch.tensor([1])}
    frame = torch.tensor([96.0, 96, 96, 96])  # both images together, padded to a multiple of 32
    labels = [
        {"class_labels": t["labels"] - 1, "boxes": box_convert(t["boxes"], "xyxy", "cxcywh") / frame} for t in targets
    ]
    torch.manual_seed(5)  # of the noise
    found = model(images, targets)
    maps = list(model.backbone(model.transform(images)[0].tensors).values())
    torch.manual_seed(5)
    from transformers.modeling_outputs import BaseModelOutput

    outputs = theirs(None, inputs_embeds=maps[0], encoder_outputs=BaseModelOutput(maps), labels=labels)
    parts = {"loss_classes": "loss_vfl", "loss_l1": "loss_bbox", "loss_giou": "loss_giou"}
    for name, part in parts.items():
        wanted = sum(v for k, v in outputs.loss_dict.items() if k.startswith(part) and "_dn_" not in k)
        torch.testing.assert_close(found[name], wanted)
    wanted = sum(value for key, value in outputs.loss_dict.items() if "_dn_" in key)
    torch.testing.assert_close(found["loss_denoising"], wanted)
    torch.testing.assert_close(total(found), outputs.loss)
    assert theirs.loss_function is RTDetrForObjectDetectionLoss


def test_losses_reach_everything_and_batches_without_objects_are_learned_from() -> None:
    model, (images, targets) = small(spread=0.05).train(), images_and_targets()
    total(model(images, targets)).backward()
    silent = (".k_proj.bias",)  # softmax is blind to what all its inputs share
    missing = [
        key for key, p in model.named_parameters() if (p.grad is None or not p.grad.any()) and not key.endswith(silent)
    ]
    assert missing == []
    model.zero_grad(set_to_none=True)
    nothing = model(images, [targets[1]] * 2)
    total(nothing).backward()
    assert nothing["loss_l1"] == nothing["loss_giou"] == nothing["loss_denoising"] == 0 < nothing["loss_classes"]
    assert all(p.grad is not None for p in model.parameters())


def test_a_network_that_diverged_gives_a_loss_that_says_so() -> None:
    model, (images, targets) = small().train(), images_and_targets()
    with torch.no_grad():
        model.rt_detr.decoder.class_embed[1].weight.fill_(math.nan)
    assert total(model(images, targets)).isnan()


def test_detections_are_those_of_the_librarys_processor() -> None:
    model, (images, _) = small(spread=0.1).eval(), images_and_targets()
    with torch.no_grad():
        found = model(images)
        batch = model.transform(images)[0].tensors
        outputs = model.decoded(list(model.backbone(batch).values()))
    raw = SimpleNamespace(
        logits=outputs.intermediate_logits[:, -1], pred_boxes=outputs.intermediate_reference_points[:, -1]
    )
    frames = [tuple(batch.shape[-2:])] * 2
    wanted = RTDetrImageProcessor().post_process_object_detection(raw, threshold=0.0, target_sizes=frames)
    for one, other, image in zip(found, wanted, images, strict=True):
        assert len(one["scores"]) == 12
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-5)
        assert torch.equal(one["labels"], other["labels"] + 1)
        boxes = clip_boxes_to_image(other["boxes"], tuple(image.shape[-2:]))
        torch.testing.assert_close(one["boxes"], boxes, atol=1e-3, rtol=1e-5)
    keep_above(model, float(found[0]["scores"][3]))
    with torch.no_grad():
        assert torch.equal(model(images)[0]["scores"], found[0]["scores"][:3])


def test_small_images_have_fewer_queries_and_what_was_cached_at_test_serves_training() -> None:
    model, (images, targets) = small(CONFIG).eval(), images_and_targets()
    with torch.inference_mode():
        few = model([torch.rand(3, 20, 30)])
    assert len(few[0]["boxes"]) == 12
    large = RTDETRConfig(queries=300, layers=1, denoising=0, score_threshold=0.0)
    model = small(large)
    with torch.inference_mode():
        assert len(model.eval()([torch.rand(3, 32, 32)])[0]["boxes"]) == 21 * CLASSES
        model(images)
    losses = model.train()(images, targets)
    assert "loss_denoising" not in losses
    total(losses).backward()


def test_boxes_are_found_in_full_precision() -> None:
    model, (images, targets) = small(spread=0.1), images_and_targets()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.decoded(list(model.backbone(model.transform(images)[0].tensors).values()))
        assert outputs.intermediate_reference_points.dtype == outputs.intermediate_logits.dtype == torch.float32
        assert total(model.train()(images, targets)).isfinite()


def test_saved_detector_finds_the_same(tmp_path: Path) -> None:
    model, (images, _) = small(spread=0.1).eval(), images_and_targets()
    save_detector(tmp_path / "w.safetensors", model)
    other = small().eval()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    with torch.no_grad():
        for one, again in zip(model(images), other(images), strict=True):
            assert all(torch.equal(one[key], again[key]) for key in one)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "rt_detr"}


def test_necks_and_mistakes() -> None:
    for neck in ("fpn", "c4", "transformer", "hybrid"):
        assert with_neck(TrunkConfig(neck=neck), CONFIG.necks).neck == "hybrid"  # type: ignore[arg-type]
    assert with_neck(TrunkConfig(neck="hybrid"), FasterRCNNConfig.necks).neck == "fpn"
    with pytest.raises(UserError, match=r"^trunk\.fpn_channels: 12; .* multiple of 4 and of its 8 heads$"):
        Trunk(TrunkConfig("resnet18", neck="hybrid", fpn_channels=12))
