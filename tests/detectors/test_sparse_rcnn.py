import json
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection._utils import encode_boxes
from torchvision.ops import generalized_box_iou
from torchvision.ops.poolers import LevelMapper

from boxless import evaluate, export, finetune, predict, pretrain
from boxless.detectors.criterion import Objects, focal_set_loss, match
from boxless.detectors.detector import build_trunk, keep_above
from boxless.detectors.sparse_rcnn import CODER, DynamicInteraction, SparseRCNN, SparseRCNNConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.errors import UserError
from boxless.interop.weights import load_trunk
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import load_detector

SMALL = TrunkConfig("resnet18", fpn_channels=16, box_head_width=8)
CONFIG = SparseRCNNConfig(score_threshold=0.0, learned_proposals=7, detections=15)
CLASSES = 3


def small() -> SparseRCNN:
    torch.manual_seed(0)
    model = CONFIG.build(Trunk(SMALL), CLASSES)
    assert isinstance(model, SparseRCNN)
    return model


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    full = {"boxes": torch.tensor([[5.0, 10, 60, 40], [0, 0, 20, 20]]), "labels": torch.tensor([2, 3])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [torch.rand(3, *size, generator=generator) for size in ((64, 96), (80, 50))], [full, none]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def normed(values: list[float], norm: torch.nn.LayerNorm) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    scaled = [(v - mean) / math.sqrt(variance + norm.eps) for v in values]
    return [v * w + b for v, w, b in zip(scaled, norm.weight.tolist(), norm.bias.tolist(), strict=True)]


def test_dynamic_interaction_is_that_of_a_slow_loop() -> None:
    torch.manual_seed(1)
    width, narrow, side = 8, 2, 3
    module = DynamicInteraction(width, side).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        state, pooled = torch.randn(2, width).double(), torch.randn(2, width, side, side).double()
        given = module(state, pooled)
    for row in range(2):
        kernels = (module.kernels.weight.detach() @ state[row] + module.kernels.bias.detach()).tolist()
        first, second = kernels[: width * narrow], kernels[width * narrow :]  # (C, D) and (D, C), row by row
        cells: list[float] = []
        for y in range(side):
            for x in range(side):
                cell = pooled[row, :, y, x].tolist()
                cell = [sum(cell[c] * first[c * narrow + d] for c in range(width)) for d in range(narrow)]
                cell = [max(v, 0.0) for v in normed(cell, module.norms[0])]
                cell = [sum(cell[d] * second[d * width + c] for d in range(narrow)) for c in range(width)]
                cells += [max(v, 0.0) for v in normed(cell, module.norms[1])]
        out = [sum(w * v for w, v in zip(r, cells, strict=True)) for r in module.out.weight.tolist()]
        out = [v + b for v, b in zip(out, module.out.bias.tolist(), strict=True)]
        expected = [max(v, 0.0) for v in normed(out, module.norms[2])]
        torch.testing.assert_close(given[row], torch.tensor(expected, dtype=torch.float64))


sides = st.floats(1, 500)
places = st.floats(-500, 500)
deltas = st.floats(-3, 3)


@settings(max_examples=50)
@given(st.tuples(places, places, sides, sides), st.tuples(deltas, deltas, deltas, st.floats(8, 20)))
def test_boxes_are_moved_by_the_formula_and_back(box: tuple[float, ...], step: tuple[float, ...]) -> None:
    x, y, w, h = box
    moved_x, moved_y = x + w / 2 + step[0] / 2 * w, y + h / 2 + step[1] / 2 * h  # centres
    moved_w, moved_h = w * math.exp(step[2]), h * min(math.exp(step[3]), 100_000 / 16)
    corners = [moved_x - moved_w / 2, moved_y - moved_h / 2, moved_x + moved_w / 2, moved_y + moved_h / 2]
    before = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    after = CODER.decode_single(torch.tensor([step], dtype=torch.float64), before)
    torch.testing.assert_close(after, torch.tensor([corners], dtype=torch.float64))
    back = encode_boxes(after, before, torch.tensor([2.0, 2, 1, 1], dtype=torch.float64))[0].tolist()
    assert back[:3] == pytest.approx(step[:3], abs=1e-6)
    assert back[3] == pytest.approx(min(step[3], math.log(6250)), abs=1e-6)


def focal(logit: float, there: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if there else -0.75 * p**2 * math.log(1 - p)


def predictions(batch: int) -> tuple[Tensor, Tensor, Objects]:
    """Of 2 stages and 4 queries, with 3 and 2 objects."""
    generator = torch.Generator().manual_seed(batch)

    def boxes(*shape: int) -> Tensor:
        corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
        return torch.cat([corner, corner + 0.1 + torch.rand(*shape, 2, generator=generator)], -1)

    logits = torch.randn(2, batch, 4, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (batch, 3), generator=generator)
    present = torch.arange(3) < torch.tensor([3, 2] * batch)[:batch, None]
    return logits, boxes(2, batch, 4), Objects(labels, boxes(batch, 3), present)


def test_matching_and_loss_are_those_of_all_permutations() -> None:
    logits, boxes, objects = predictions(2)
    matching = match(logits, boxes, objects, focal=True)
    losses = focal_set_loss(logits, boxes, objects, matching, count=5)
    expected = dict.fromkeys(losses, 0.0)
    for stage in range(2):
        for image in range(2):
            labels, where = (t[image, objects.present[image]] for t in objects[:2])
            scores, found = logits[stage, image].tolist(), boxes[stage, image]
            far = (found[:, None] - where).abs().sum(-1)
            apart = 1 - generalized_box_iou(found, where)

            def cost(rows: tuple[int, ...], labels=labels, scores=scores, far=far, apart=apart) -> float:
                pairs = [(row, k, scores[row][labels[k]]) for k, row in enumerate(rows)]
                classified = sum(focal(logit, True) - focal(logit, False) for _, _, logit in pairs)
                return 2 * classified + float(sum(5 * far[row, k] + 2 * apart[row, k] for row, k, _ in pairs))

            best = min(permutations(range(4), len(labels)), key=cost)
            assert tuple(matching.query[stage, image, : len(labels)].tolist()) == best
            there = {(row, int(labels[k])) for k, row in enumerate(best)}
            for query in range(4):
                for label in range(CLASSES):
                    expected["classes"] += 2 * focal(scores[query][label], (query, label) in there) / 5
            expected["l1"] += sum(5 * float(far[row, k]) / 5 for k, row in enumerate(best))
            expected["giou"] += sum(2 * float(apart[row, k]) / 5 for k, row in enumerate(best))
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_losses_reach_everything() -> None:
    model = small().train()
    with torch.no_grad():  # zeroed last gammas would stop the gradient inside residual blocks
        for name, parameter in model.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(1)
    losses = model(*images_and_targets())
    assert set(losses) == {"loss_classes", "loss_l1", "loss_giou"}
    total(losses).backward()
    unused = ("backbone.fpn.layer_blocks.2", "backbone.fpn.layer_blocks.3")  # no box is large enough for P4 and P5
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith(unused) for name in missing), missing
    assert model.proposal_boxes.grad.any(1).any() and model.proposal_features.grad.any(1).all()


def test_a_stage_does_not_move_the_boxes_before_it() -> None:
    model = small().train()
    images, _ = images_and_targets()
    batch, _ = model.transform(images)
    sizes = torch.tensor([[96.0, 64, 96, 64], [50, 80, 50, 80]])
    _, boxes = model.refined(model.backbone(batch.tensors), sizes, batch.image_sizes)
    for stage in range(6):
        first, earlier = model.proposal_boxes, model.stages[stage - 1].box_deltas.weight
        own = model.stages[stage].box_deltas.weight
        given = torch.autograd.grad(boxes[stage].sum(), [own, first, earlier], retain_graph=True)
        assert [bool(gradient.any()) for gradient in given] == [True, stage == 0, False]


def test_order_of_objects_does_not_matter_and_none_is_fine() -> None:
    model = small().train()
    images, targets = images_and_targets()
    turned = [{name: value.flip(0) for name, value in target.items()} for target in targets]
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 0.0
    given, again = model(images, targets), model(images, turned)
    for name, value in given.items():
        torch.testing.assert_close(value, again[name])
    none = model(images, [targets[1]] * 2)
    assert none["loss_l1"] == 0 and none["loss_giou"] == 0
    total(none).backward()
    assert total(none).isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.backbone.fpn.layer_blocks[0][0].weight.grad.any()


def test_loss_starts_where_the_prior_puts_it() -> None:
    model = small().train()
    with torch.no_grad():
        for stage in model.stages:
            stage.class_logits.weight.zero_()
        _, targets = images_and_targets()
        losses = model(images_and_targets()[0], [targets[1]] * 2)
    expected = 2 * 6 * 2 * 7 * CLASSES * 0.75 * 0.01**2 * -math.log(0.99)
    assert float(losses["loss_classes"]) == pytest.approx(expected, rel=1e-4)


def test_levels_are_torchvisions_also_of_boxes_beyond_the_image() -> None:
    model = small()
    maps = {str(k): torch.full((1, 1, 512 // 2**k, 512 // 2**k), float(k)) for k in range(4)}
    middle, half = torch.rand(60, 2) * 100 + 200, torch.rand(60, 2) * 190 + 4
    boxes = torch.cat([middle - half, middle + half], 1)
    boxes[-1] = torch.tensor([-1e6, -1e6, 1e6, 1e6])
    pooled = model.roi_pool(maps, [boxes], [(512, 512)])
    levels = LevelMapper(2, 5)([boxes])
    assert torch.equal(pooled[:-1, 0, 3, 3].round().long(), levels[:-1]) and levels.unique().tolist() == [0, 1, 2, 3]
    assert pooled[-1].isfinite().all()


def test_a_network_that_has_diverged_ends_with_a_loss_and_not_a_crash() -> None:
    model = small().train()
    with torch.no_grad():
        model.stages[0].box_deltas.bias.fill_(math.nan)
    assert total(model(*images_and_targets())).isnan()


def test_finds_the_best_pairs_of_box_and_class_inside_each_image() -> None:
    model = small().eval()
    images, _ = images_and_targets()
    with torch.no_grad():
        last = model.stages[-1]
        last.class_logits.weight.zero_()
        last.class_logits.bias.copy_(torch.tensor([-1.0, 2.0, 0.5]))
        found = model(images)
        last.class_logits.bias[2] = -9
        keep_above(model, torch.tensor(2.0).sigmoid().item() - 0.01)
        surest = model(images)
    for one, few, (height, width) in zip(found, surest, [(64, 96), (80, 50)], strict=True):
        assert one["labels"].tolist() == [2] * 7 + [3] * 7 + [1]
        torch.testing.assert_close(one["scores"][[0, 7, 14]], torch.tensor([2, 0.5, -1.0]).sigmoid())
        assert (one["boxes"] >= 0).all() and (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert few["labels"].tolist() == [2] * 7 and torch.equal(few["boxes"].sort(0)[0], one["boxes"][:7].sort(0)[0])


def test_trunk_has_what_is_used_and_says_so(tmp_path: Path) -> None:
    save_file(Trunk(SMALL).state_dict(), tmp_path / "w.safetensors")
    trunk = build_trunk(SMALL, CONFIG)
    report = load_trunk(trunk, tmp_path / "w.safetensors", minimum=1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 1.0} and report.parameter_share == 1
    assert report.unused and all(key.startswith("box_head.") for key in report.unused)
    model = CONFIG.build(trunk, CLASSES)
    assert not any("box_head" in key for key in model.state_dict())
    save_file(model.state_dict(), tmp_path / "d.safetensors")
    back = load_trunk(Trunk(SMALL), tmp_path / "d.safetensors", minimum=1.0)
    assert back.shares == {"backbone": 1.0, "FPN": 1.0, "RoI head": 0.0}
    for neck in ("fpn", "c4", "transformer"):
        assert with_neck(TrunkConfig(neck=neck), CONFIG.necks).neck == "fpn"  # type: ignore[arg-type]


def test_recipe_is_the_codes() -> None:
    recipe = load("sparse-rcnn-r50-fpn", FinetuneRecipe)
    with torch.device("meta"):
        model = recipe.detector.build(build_trunk(recipe.trunk, recipe.detector), 80)
    head = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    width, inner, cells, count = 256, 64, 49, 300
    attention, norms = 4 * width * (width + 1), 2 * (5 * width + inner)
    interaction = (width + 1) * 2 * width * inner + (cells * width + 1) * width
    feedforward = (width + 1) * 2048 + (2048 + 1) * width
    towers = 4 * (width * width + 2 * width) + (width + 1) * (80 + 4)
    assert head == count * (width + 4) + 6 * (attention + norms + interaction + feedforward + towers)


def few_labels(coco: Path, part: str, out: Path) -> str:
    """The first eight images of a part with their labels."""
    content = json.loads((coco / "annotations" / f"instances_{part}.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(coco / "images" / part / image["file_name"])
    content["images"] = content["images"][:8]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    (out / f"{part}.json").write_text(json.dumps(content))
    return str(out / f"{part}.json")


def test_fine_tunes_from_a_pretrained_run_on_photographs(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = [few_labels(shared_data / "coco256", part, tmp_path) for part in ("train", "val")]
    small = {"trunk.backbone": "resnet18", "trunk.fpn_channels": 16, "trunk.box_head_width": 16}
    alike = {**small, "workers": 0, "quiet": True, "precision": "32-true", "batch_size": 2}
    views = {"method.size": 48, "method.small_size": 24, "method.hidden": 16, "method.output": 8}
    photographs = tmp_path / "photographs.txt"
    photographs.write_text("\n".join(map(str, sorted((shared_data / "coco256" / "images" / "train").iterdir())[:4])))
    pretrained = pretrain(
        str(photographs),
        str(tmp_path / "soco"),
        "soco-small",
        epochs=1,
        **{**alike, **views, "proposals.method": "grid"},
    )

    sizes = {"iterations": 2, "min_size": (64,), "max_size": 96, "evaluate_every": 9}
    where = {"data": labels[0], "val": labels[1]}
    detector = {"detector.kind": "sparse_rcnn", "detector.learned_proposals": 8, "detector.score_threshold": 0.0}
    run = finetune(out=str(tmp_path / "run"), weights=str(pretrained.path), **where, **alike, **sizes, **detector)
    weights = run.summary["weights"]
    assert "100.0% of parameters; backbone ok, FPN ok (from" in weights
    assert "tensors of the file have no place here, such as box_head." in weights

    model, classes, _ = load_detector(run.path)
    assert isinstance(model, SparseRCNN) and len(classes) == 80
    result = evaluate(str(run.path), where["val"], quiet=True)
    assert result.scores["bbox"].as_dict() == pytest.approx(run.summary["scores"]["bbox"], nan_ok=True)
    found = predict(str(run.path), str(photographs), str(tmp_path / "found"), score=0.0, quiet=True)
    assert found.images == 4 and found.objects == 4 * 100
    with pytest.raises(UserError, match="torchvision has no Sparse R-CNN"):
        export(str(run.path), str(tmp_path / "x.safetensors"), "torchvision-detector", quiet=True)
    export(str(run.path), str(tmp_path / "body.safetensors"), quiet=True)
