"""The shipped recipes against the papers' and codes' numbers, and the papers' tables against what is shipped."""

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection

from boxless.detectors.detector import build_trunk
from boxless.detectors.trunk import Trunk
from boxless.recipes.load import load, names
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.tasks.schedule import FinetuneSchedule, PretrainSchedule

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import make_recipes  # type: ignore[import-not-found]  # noqa: E402
import published  # type: ignore[import-not-found]  # noqa: E402

COCO, IMAGENET = 118_287, 1_281_167
USUAL = (640, 672, 704, 736, 768, 800)
WIDE = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def settings(words: str) -> dict[str, str]:
    """`--a 1 --b 2` as a mapping; the flags of commands, which are no keys of recipes, are left out."""
    flags = words.split()
    pairs = {key.removeprefix("--"): value for key, value in zip(flags[::2], flags[1::2], strict=True)}
    return {key: value for key, value in pairs.items() if key not in ("recipe", "weights", "kind", "preset")}


def rows() -> Iterator[tuple[published.Table, published.Row]]:
    return ((table, row) for paper in published.papers() for table in paper.tables for row in table.rows)


def test_every_row_is_made_by_recipes_and_flags_that_exist() -> None:
    made = set()
    for table, row in rows():
        assert len(row.scores) == len(table.scores), (table.paper, table.number, row.name)
        if row.recipe is not None:
            changed = override(load(row.recipe, PretrainRecipe), settings(row.start.partition(" ")[2]))
            assert isinstance(changed, PretrainRecipe)
        if table.recipe is not None:
            changed = override(load(table.recipe, FinetuneRecipe), settings(table.transfer.partition(" ")[2]))
            assert isinstance(changed, FinetuneRecipe)
        made |= {row.recipe, table.recipe}
        assert f"boxless {table.transfer}" in table.command(row)
    assert len(list(rows())) > 250 and made <= {*names(), None}


def test_quoted_scores_are_the_papers() -> None:
    """A few of them, as printed: SoCo's tables 1 and 8, DetCo's 2 and 8, LC-loss's 3, Self-EMD's 1."""
    quoted = {(table.paper, table.number, row.name): row.scores for table, row in rows()}
    assert quoted["soco", "1, 1x", "SoCo, 100 epochs"] == (42.3, 37.6)
    assert quoted["soco", "8, 5 %", "SoCo*, 400 epochs"] == (26.8, 23.8)
    assert quoted["detco", "2, FPN", "DetCo"] == (29.6, 27.6)
    assert quoted["detco", "8, 1 %", "DetCo"] == (9.9, 19.3, 9.1)
    assert quoted["lc-loss", "3, Cityscapes", "LC-loss, 400 epochs"] == (77.8,)
    assert quoted["self-emd", "1, RetinaNet", "Self-EMD"] == (37.4, 56.5, 39.7)


TRANSFERS: dict[str, dict[str, Any]] = {
    "mask-rcnn-r50-fpn": dict(
        steps=90000, drops=(60000, 80000), peak=0.02, head="2fc", warmup=1000, kept=1000, box_beta=0.0
    ),
    "mask-rcnn-r50-fpn-12k": dict(steps=12000, drops=(9000, 11000), peak=0.02, head="2fc", warmup=1000),
    "mask-rcnn-r50-fpn-soco": dict(
        steps=90000, drops=(60000, 80000), peak=0.02, head="4conv1fc", decay=2.5e-5, mask_norm=True
    ),
    "mask-rcnn-r50-c4": dict(steps=90000, drops=(60000, 80000), peak=0.02, neck="c4", proposals=(12000, 2000)),
    "mask-rcnn-r50-c4-12k": dict(steps=12000, drops=(9000, 11000), peak=0.02, neck="c4"),
    "mask-rcnn-r50-c4-soco": dict(steps=90000, drops=(60000, 80000), peak=0.02, neck="c4", decay=2.5e-5),
    "mask-rcnn-r50-fpn-mini-5": dict(
        steps=5500, drops=(4000, 5000), peak=0.02, decay=2.5e-5, fraction=0.05, choice="first", warmup=550
    ),
    "mask-rcnn-r50-fpn-mini-10": dict(
        steps=10000, drops=(7000, 9000), peak=0.02, decay=2.5e-5, fraction=0.1, choice="first"
    ),
    "mask-rcnn-r50-fpn-lvis": dict(
        steps=90000, drops=(60000, 80000), peak=0.02, decay=2.5e-5, metric="lvis", repeat=1e-3, score=1e-4, found=300
    ),
    "mask-rcnn-r50-fpn-cityscapes": dict(
        steps=24000,
        drops=(18000,),
        peak=0.01,
        batch=8,
        sizes=(800, 832, 864, 896, 928, 960, 992, 1024),
        longest=2048,
    ),
    "faster-rcnn-r50-fpn": dict(steps=90000, drops=(60000, 80000), peak=0.02, head="2fc"),
    "faster-rcnn-r50-c4-voc": dict(
        steps=24000, drops=(18000, 22000), peak=0.02, neck="c4", warmup=100, sizes=WIDE, metric="voc07"
    ),
    "faster-rcnn-r50-fpn-voc": dict(
        steps=24000, drops=(18000, 22000), peak=0.02, head="4conv1fc", warmup=100, sizes=WIDE, metric="voc07"
    ),
    "retinanet-r50-fpn": dict(steps=90000, drops=(60000, 80000), peak=0.01, neck="fpn_p3"),
    "retinanet-r50-fpn-12k": dict(steps=12000, drops=(9000, 11000), peak=0.01, neck="fpn_p3"),
    "retinanet-r50-fpn-mmdetection": dict(
        steps=88715, drops=(59143, 81322), peak=0.01, neck="fpn_p3", warmup=500, sizes=(800,), precise=0
    ),
    "keypoint-rcnn-r50-fpn": dict(steps=90000, drops=(60000, 80000), peak=0.02, head="2fc", kept=1500, box_beta=0.5),
    "sparse-rcnn-r50-fpn": dict(
        steps=270000, drops=(210000, 250000), peak=2.5e-5, sizes=WIDE, start=0.01, clip=1.0, name="adamw"
    ),
    "detr-r50": dict(
        steps=2217881,
        drops=(1478587,),
        peak=1e-4,
        sizes=WIDE,
        warmup=0,
        clip=0.1,
        name="adamw",
        norm="frozen",
        precise=0,
        freeze=2,
        factor=0.1,
    ),
}
"""Settings of the protocols, from Detectron2's, MoCo's, DetCo's, SoCo's and DETR's files; the rest are `common`."""


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfer_protocols_have_the_published_settings(name: str) -> None:
    wanted = TRANSFERS[name]
    recipe = load(name, FinetuneRecipe)
    plan, optim, detector = FinetuneSchedule.of(recipe, COCO), recipe.optim, recipe.detector
    assert plan.steps == wanted["steps"] and plan.batch == wanted.get("batch", 16)
    warmup, start, peak = wanted.get("warmup", 1000), wanted.get("start", 0.001), wanted["peak"]
    assert plan.warmup == warmup
    rate = plan.learning_rate
    if warmup:
        assert math.isclose(rate(0), start * peak) and math.isclose(rate(warmup // 2), peak * (1 + start) / 2)
    drops = wanted["drops"]
    assert math.isclose(rate(warmup), peak) and math.isclose(rate(drops[0] - 1), peak)
    for number, drop in enumerate(drops, start=1):
        assert math.isclose(rate(drop), peak * 0.1**number), (drop, rate(drop))
    assert (optim.name, optim.weight_decay, optim.momentum) == (
        wanted.get("name", "sgd"),
        wanted.get("decay", 1e-4),
        0.9,
    )
    assert optim.clip_norm == wanted.get("clip") and optim.layer_decay == 1
    assert recipe.min_size == wanted.get("sizes", USUAL) and recipe.max_size == wanted.get("longest", 1333)
    assert recipe.trunk.backbone == "resnet50" and recipe.trunk.norm == wanted.get("norm", "sync")
    assert recipe.precise_norms == wanted.get("precise", 200) and recipe.freeze == wanted.get("freeze", 0)
    if "head" in wanted:
        assert recipe.trunk.box_head == wanted["head"] and recipe.trunk.neck == "fpn"
    if "neck" in wanted:
        assert recipe.trunk.neck == wanted["neck"]
    for key, value in {
        "kept": getattr(detector, "rpn_kept", None),
        "box_beta": getattr(detector, "box_beta", None),
        "score": getattr(detector, "score_threshold", None),
        "found": getattr(detector, "detections", None),
        "fraction": recipe.label_fraction,
        "choice": recipe.label_choice,
        "metric": recipe.metric,
        "repeat": recipe.repeat_threshold,
    }.items():
        if key in wanted:
            assert value == wanted[key], key
    assert getattr(detector, "mask_norm", False) == (
        ("soco" in name and "c4" not in name) or "mini" in name or "lvis" in name
    )


def test_twice_and_four_times_as_long_keep_the_drops() -> None:
    """COCO 2x: 180k (120k, 160k), 4x: 360k (240k, 320k)."""
    recipe = load("mask-rcnn-r50-fpn-soco", FinetuneRecipe)
    for steps, drops in {180_000: (120_000, 160_000), 360_000: (240_000, 320_000)}.items():
        assert FinetuneSchedule.of(override(recipe, {"iterations": steps}), COCO).milestones == drops


@pytest.mark.parametrize(
    ("name", "steps", "batch", "peak", "decay", "crop"),
    [("fcn-r50-voc", 20000, 16, 0.01, 5e-4, 512), ("fcn-r50-cityscapes", 40000, 8, 0.01, 5e-4, 769)],
)
def test_openmmlabs_segmentation_protocols(
    name: str, steps: int, batch: int, peak: float, decay: float, crop: int
) -> None:
    recipe = load(name, FinetuneRecipe)
    plan = FinetuneSchedule.of(recipe, COCO)
    assert (plan.steps, plan.batch, recipe.optim.weight_decay, recipe.crop.size) == (steps, batch, decay, crop)
    for share in (0, 0.25, 0.5, 0.9):
        step = round(share * steps)
        assert math.isclose(plan.learning_rate(step), (peak - 1e-4) * (1 - step / steps) ** 0.9 + 1e-4)
    assert recipe.detector.align_corners == (crop == 769)


@pytest.mark.parametrize(
    ("name", "steps", "peak", "crop"),
    [("fcn-16s-r50-voc", 30000, 0.003, 513), ("fcn-16s-r50-cityscapes", 90000, 0.01, 769)],
)
def test_mocos_segmentation_protocols(name: str, steps: int, peak: float, crop: int) -> None:
    recipe = load(name, FinetuneRecipe)
    plan = FinetuneSchedule.of(recipe, COCO)
    rates = [plan.learning_rate(round(share * steps)) for share in (0, 0.69, 0.7, 0.9)]
    assert rates == pytest.approx([peak, peak, peak / 10, peak / 100])
    assert (plan.steps, plan.batch, recipe.optim.weight_decay, recipe.crop.size) == (steps, 16, 1e-4, crop)


PRETRAININGS: dict[str, dict[str, Any]] = {
    "soco-r50-fpn": dict(batch=2048, peak=8.0, start=0.08, end=1e-6, warmup=10, epochs=100, decay=1e-5, momentum=0.99),
    "soco-star-r50-fpn": dict(batch=2048, peak=8.0, start=0.08, end=1e-6, warmup=10, epochs=400, decay=1e-5),
    "soco-c4-r50": dict(batch=2048, peak=8.0, start=0.08, end=1e-6, warmup=10, epochs=100, decay=1e-5),
    "pixpro-r50": dict(batch=1024, peak=4.0, start=0.04, end=1e-6, warmup=5, epochs=100, decay=1e-5),
    "byol-r50": dict(batch=4096, peak=4.8, start=0, end=0, warmup=10, epochs=300, decay=1e-6),
    "lc-byol-r50": dict(batch=4096, peak=4.8, start=0, end=0, warmup=10, epochs=400, decay=1e-6),
    "simclr-r50": dict(batch=4096, peak=4.8, start=0, end=0, warmup=10, epochs=100, decay=1e-6),
    "barlow-r50": dict(batch=2048, peak=1.6, start=0, end=0.0016, warmup=10, epochs=1000, decay=1e-6),
    "vicreg-r50": dict(batch=512, peak=0.6, start=0, end=0.0006, warmup=10, epochs=100, decay=1e-6),
    "moco-r50": dict(batch=256, peak=0.03, start=0.03, end=0, warmup=0, epochs=200, decay=1e-4, name="sgd"),
    "detco-r50": dict(batch=256, peak=0.03, start=0.03, end=0, warmup=0, epochs=200, decay=1e-4, name="sgd"),
    "densecl-r50": dict(batch=256, peak=0.3, start=0.3, end=0, warmup=0, epochs=800, decay=1e-4, name="sgd"),
    "self-emd-r50": dict(batch=256, peak=0.2, start=0, end=0, warmup=4, epochs=800, decay=1e-4, name="sgd"),
    "dino-r50": dict(batch=512, peak=0.06, start=0, end=1e-6, warmup=10, epochs=100, decay=1e-4, name="sgd"),
    "swav-r50": dict(batch=256, peak=0.6, start=0.6, end=0.0006, warmup=0, epochs=200, decay=1e-6),
}
"""Batches, learning rates and decays of the papers and their codes."""


@pytest.mark.parametrize("name", PRETRAININGS)
def test_pretrainings_have_the_published_settings(name: str) -> None:
    wanted = PRETRAININGS[name]
    recipe = override(load(name, PretrainRecipe), {"batch_size": wanted["batch"]})
    plan = PretrainSchedule.of(recipe, IMAGENET)
    per_epoch = IMAGENET // wanted["batch"]
    assert plan.steps == wanted["epochs"] * per_epoch and plan.warmup == wanted["warmup"] * per_epoch
    peak, end = wanted["peak"], wanted["end"]
    middle = plan.warmup + (plan.steps - plan.warmup) // 2
    assert plan.learning_rate(0) == pytest.approx(wanted["start"])
    assert plan.learning_rate(plan.warmup) == pytest.approx(peak)
    assert plan.learning_rate(middle) == pytest.approx((peak + end) / 2, rel=1e-3)
    assert plan.learning_rate(plan.steps) == pytest.approx(end, abs=1e-9)
    assert (recipe.optim.name, recipe.optim.weight_decay) == (wanted.get("name", "lars"), wanted["decay"])
    assert recipe.trunk.backbone == "resnet50"


def detector(name: str, classes: int) -> nn.Module:
    recipe = load(name, FinetuneRecipe)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trunk = build_trunk(recipe.trunk, recipe.detector)
        return recipe.detector.build(trunk, classes, 17)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "theirs", "pyramid_norms"),
    [
        ("mask-rcnn-r50-fpn", detection.maskrcnn_resnet50_fpn, 8),
        ("faster-rcnn-r50-fpn", detection.fasterrcnn_resnet50_fpn, 8),
        ("keypoint-rcnn-r50-fpn", detection.keypointrcnn_resnet50_fpn, 8),
    ],
)
def test_parameters_are_torchvisions_but_for_the_pyramids_norms(name: str, theirs: Any, pyramid_norms: int) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keypoints = {"num_keypoints": 17} if "keypoint" in name else {}
        reference = theirs(weights=None, weights_backbone=None, num_classes=81, **keypoints)
    # A norm has a scale and a shift where torchvision's convolution has a bias, 256 wide each.
    assert count(detector(name, 80)) == count(reference) + pyramid_norms * 256


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("detr-r50", 91, 41.3),  # DETR, table 1: 41 M; the released model has 41,302,368
        ("sparse-rcnn-r50-fpn", 80, 106.2),  # its repository: 106 M
        ("rt-detr-r50", 80, 42.9),  # RT-DETRv2, table 1: 42 M
        ("fcn-r50-voc", 21, 49.5),  # OpenMMLab's FCN-R50-d8 for VOC: 49.5 M
    ],
)
def test_parameters_are_as_published(name: str, classes: int, millions: float) -> None:
    assert count(detector(name, classes)) / 1e6 == pytest.approx(millions, rel=0.01)


def test_soco_s_and_byols_parts_have_their_papers_sizes() -> None:
    recipe = load("soco-r50-fpn", PretrainRecipe)
    with torch.device("meta"):
        trunk = Trunk(recipe.trunk)
    assert count(trunk.parts["backbone"]) == 23_508_032  # ResNet-50 without its classifier
    convolutions, linear = 4 * (256 * 256 * 9 + 2 * 256), 256 * 49 * 1024 + 1024
    assert count(trunk.parts["RoI head"]) == convolutions + linear
    laterals, outputs = sum(width * 256 for width in (256, 512, 1024, 2048)), 4 * 256 * 256 * 9
    assert count(trunk.parts["FPN"]) == laterals + outputs + 8 * 2 * 256


def test_page_of_recipes_is_the_one_that_is_made() -> None:
    written = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert make_recipes.page(make_recipes.all_recipes()) == written, "run python docs/make_recipes.py"
