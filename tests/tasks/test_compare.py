"""Gains are paired by seed and called more than noise only when they are."""

import importlib
import math
from pathlib import Path

import pytest

from boxless import compare
from boxless.errors import UserError
from boxless.recipes.load import load
from boxless.recipes.overrides import override
from boxless.recipes.schema import CompareRecipe, PretrainRecipe
from boxless.tasks.compare_starts import resolve_detectors, resolve_starts
from boxless.tasks.compare_table import Cell, summarize, table


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("seeds")


def cells(method, values, fraction=0.1):
    names = ("AP", "AP50", "AP75")
    return [
        Cell("faster_rcnn", method, fraction, 10, seed, dict.fromkeys(names, ap), 1.0) for seed, ap in enumerate(values)
    ]


def test_gain_is_paired_and_its_interval_is_students():
    rows = summarize(cells("none", [0.10, 0.20, 0.30]) + cells("soco", [0.13, 0.24, 0.35]))
    reference, soco = rows
    assert reference.gain is None and reference.verdict == "reference"
    assert soco.gain == pytest.approx(0.04)
    # differences 3, 4, 5: standard deviation 1, t(0.975, 2) = 4.303, so 4.303 / sqrt(3)
    assert soco.interval == pytest.approx(0.01 * 4.303 / 3**0.5, rel=1e-3)
    assert soco.verdict == "better"
    assert "+4.0 ± 2.5" in table(rows)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.05, 0.14, 0.25], "worse"), ([0.20, 0.11, 0.32], "within noise")],
)
def test_verdicts(values, verdict):
    rows = summarize(cells("none", [0.10, 0.20, 0.30]) + cells("soco", values))
    assert rows[1].verdict == verdict


def test_seeds_without_a_reference_widen_no_interval():
    """Only pairs count: here two, with differences 3 and 5, so t(0.975, 1) * sqrt(2) / sqrt(2)."""
    rows = summarize(cells("none", [0.10, 0.20]) + cells("soco", [0.13, 0.25, 0.90]))
    assert rows[1].n == 3
    assert rows[1].interval == pytest.approx(0.01 * 12.706, rel=1e-3)


def test_one_seed_says_nothing():
    rows = summarize(cells("none", [0.1]) + cells("soco", [0.9]))
    assert rows[1].verdict == "one seed: cannot tell"


def test_few_seeds_are_judged_by_the_spread_of_all_gains():
    """Alone, two seeds need a gain of nine spreads; other starts and amounts of labels say how large the spread is."""
    first = cells("none", [0.1, 0.2]) + cells("soco", [0.32, 0.46])
    alone = summarize(first)[1]
    assert alone.gain == pytest.approx(0.24) and alone.verdict == "both seeds gained: too few to tell"
    more = cells("byol", [0.10, 0.21]) + cells("none", [0.2, 0.3], 0.2) + cells("soco", [0.44, 0.53], 0.2)
    rows = {(row.method, row.amount.fraction): row for row in summarize(first + more)}
    # differences 22 and 26, 0 and 1, 24 and 23: variances 8, 0.5 and 0.5; on 10 % of the labels their mean is 4.25
    t = 4.857  # of 3 degrees of freedom, at 1 - 0.025 / 3
    assert rows["soco", 0.1].interval == pytest.approx(0.01 * t * (4.25 / 2) ** 0.5, rel=1e-3)
    assert rows["soco", 0.2].interval == pytest.approx(0.01 * t * (3 / 2) ** 0.5, rel=1e-3)
    assert rows["soco", 0.1].verdict == rows["soco", 0.2].verdict == "better"
    assert rows["byol", 0.1].verdict == "within noise"
    lost = summarize(cells("none", [0.2, 0.3]) + cells("soco", [0.1, 0.29]))[1]
    assert lost.verdict == "both seeds lost: too few to tell"


@pytest.mark.parametrize(("starts", "amounts", "scales"), [(1, 1, (1,)), (4, 1, (1,)), (2, 3, (1,)), (2, 3, (1, 3))])
def test_nothing_is_better_where_nothing_differs_in_19_of_20_comparisons(simulated, starts, amounts, scales):
    for seeds in (2, 3):
        assert simulated.wrongly_better(starts, amounts, seeds, 250, scales) <= 0.05


def test_more_seeds_and_more_cells_find_more(simulated):
    two, three, five = (simulated.found(2, 1, seeds, 200) for seeds in (2, 3, 5))
    assert two < three < five and five > 0.8
    assert simulated.found(2, 3, 2, 100) > simulated.found(1, 1, 2, 400)


def test_methods_bring_their_own_learning_rate_unless_one_is_given():
    recipe = load("compare-small", CompareRecipe)
    dino = load("dino-small", PretrainRecipe).optim.base_lr
    assert dino < recipe.pretrain.optim.base_lr / 10  # DINO collapses at the others' rate
    assert [start.recipe.optim.base_lr for start in resolve_starts(["soco", "dino"], recipe)] == [
        recipe.pretrain.optim.base_lr,
        dino,
    ]
    given = override(recipe, {"pretrain.optim.base_lr": 0.25})
    assert [start.recipe.optim.base_lr for start in resolve_starts(["soco", "dino"], given)] == [0.25, 0.25]


def test_what_is_pretrained_starts_from_the_given_weights(tmp_path):
    (weights := tmp_path / "imagenet.pth").touch()
    words = ["none", "byol", "soco-small", str(weights)]
    starts = resolve_starts(words, load("compare-small", CompareRecipe), str(weights))
    assert [start.init for start in starts] == [None, weights, weights, None]
    with pytest.raises(UserError, match="no such file or run"):
        resolve_starts(words, load("compare-small", CompareRecipe), str(tmp_path / "no.pth"))


def test_a_start_of_the_recipes_own_may_name_the_weights_that_it_starts_from(tmp_path):
    own, others = tmp_path / "own.safetensors", tmp_path / "others.safetensors"
    for file in (own, others):
        file.touch()
    starts = {"new": {"method": "byol"}, "continued": {"method": "byol", "init": str(own)}}
    recipe = override(load("compare-small", CompareRecipe), {"starts": starts})
    new, continued = resolve_starts(["new", "continued"], recipe)
    assert new.recipe == continued.recipe and (new.init, continued.init) == (None, own)
    new, continued = resolve_starts(["new", "continued"], recipe, str(others))
    assert (new.init, continued.init) == (others, own)
    own.unlink()
    with pytest.raises(UserError, match=r"^starts\.continued: .*own\.safetensors"):
        resolve_starts(["continued"], recipe)


def test_starts_by_name_recipe_and_file(tmp_path):
    recipe = load("compare-small", CompareRecipe)
    weights = tmp_path / "imagenet.pth"
    weights.touch()
    starts = resolve_starts(["none", "byol", "soco", "soco-r50-fpn", str(weights)], recipe)
    assert [start.name for start in starts] == ["none", "byol", "soco", "soco-r50-fpn", "imagenet"]
    byol, soco = starts[1].recipe, starts[2].recipe
    assert byol.trunk == soco.trunk and byol.epochs == soco.epochs
    assert byol.method.size == soco.method.size == recipe.view_size
    with pytest.raises(UserError, match=r"'sooc' is no method.*soco"):
        resolve_starts(["sooc"], recipe)
    with pytest.raises(UserError, match="same name"):
        resolve_starts(["none", "none"], recipe)


def test_starts_of_the_recipes_own_differ_in_their_keys_alone(tmp_path):
    file = tmp_path / "ladder.yaml"
    starts = "{boxes: {method: soco, method.align: body, optim.base_lr: 0.1}, dense: {method: lc-byol}}"
    file.write_text(f"recipe: compare-small\nview_size: 64\nstarts: {starts}\n")
    recipe = load(file, CompareRecipe)
    boxes, soco, dense = (start.recipe for start in resolve_starts(["boxes", "soco", "dense"], recipe))
    assert boxes.method.align == "body" and soco.method.align == "head" and boxes.method.size == 64
    assert override(soco, {"method.align": "body", "optim.base_lr": 0.1}) == boxes
    assert dense == resolve_starts(["lc-byol"], recipe)[0].recipe

    def mistake(starts, word="x"):
        with pytest.raises(UserError) as caught:
            resolve_starts([word], override(recipe, {"starts": starts}))
        return str(caught.value)

    assert "starts.x: unknown key 'method.aling': did you mean 'method.align'" in mistake(
        {"x": {"method": "soco", "method.aling": 1}}
    )
    assert "starts.x: no method 'sooc': did you mean 'soco'?" in mistake({"x": {"method": "sooc"}})
    for starts in ({"x": {"boxes": 1}}, {"x": None}, {"x": [1]}, {"x": {"method": [1]}}):
        assert mistake(starts).startswith("starts.x: no method")
    for starts in (
        "{../x: {method: soco}}",
        "{none: {method: soco}}",
        "{on: {method: soco}}",
        "{1: {method: soco}}",
        "",
    ):
        file.write_text(f"recipe: compare-small\nstarts: {starts}\n")
        with pytest.raises(UserError, match="starts: expected"):
            load(file, CompareRecipe)


def test_scores_that_no_image_has_do_not_stop_the_comparison():
    """Without large objects, AP of large ones is not a number in every seed."""
    some = [
        Cell("faster_rcnn", "none", 0.1, 10, seed, {"AP": ap, "AP50": ap, "AP75": ap, "APl": math.nan}, 1.0)
        for seed, ap in enumerate([0.1, 0.2, 0.3])
    ]
    row = summarize(some)[0]
    assert math.isnan(row.mean["APl"]) and math.isnan(row.spread["APl"])
    assert row.spread["AP"] == pytest.approx(0.1)


def test_detectors_by_kind_and_file_share_the_pretrained_trunk(tmp_path):
    recipe = load("compare-small", CompareRecipe)
    (file := tmp_path / "c4.yaml").write_text("recipe: faster-rcnn-r50-c4-voc\niterations: 7\n")
    usual, retinanet, c4 = resolve_detectors(["faster_rcnn", "retinanet", str(file)], recipe)
    assert [resolve_detectors([], recipe)[0], usual.name, c4.name] == [usual, "faster_rcnn", "c4"]
    assert [each.recipe.trunk.neck for each in (usual, retinanet, c4)] == ["fpn", "fpn_p3", "c4"]
    assert {each.recipe.trunk.backbone for each in (usual, retinanet, c4)} == {recipe.pretrain.trunk.backbone}
    assert [each.recipe.iterations for each in (usual, retinanet, c4)] == [recipe.finetune.iterations] * 2 + [7]
    with pytest.raises(UserError, match=r"'retinane' is no detector.*retinanet"):
        resolve_detectors(["retinane"], recipe)
    with pytest.raises(UserError, match="FCN"):
        resolve_detectors(["fcn-r50-voc"], recipe)
    with pytest.raises(UserError, match="same name"):
        resolve_detectors(["fcos", "fcos"], recipe)


@pytest.mark.parametrize("key", ["seed", "label_fraction", "label_count", "evaluate_every", "trunk.norm"])
def test_what_a_comparison_decides_is_refused(key, tmp_path):
    with pytest.raises(UserError, match=rf"^finetune\.{key}: has no effect in a comparison: "):
        compare("images", "train.json", "val.json", str(tmp_path), **{f"finetune.{key}": 1})


def test_each_detector_is_measured_over_its_own_start_from_scratch():
    names = ("AP", "AP50", "AP75")
    values = {("fcos", "none"): 0.1, ("fcos", "soco"): 0.3, ("retinanet", "none"): 0.4, ("retinanet", "soco"): 0.35}
    rows = summarize([Cell(*key, 0.1, 10, 0, dict.fromkeys(names, ap), 1.0) for key, ap in values.items()])
    assert [row.gain for row in rows] == [None, pytest.approx(0.2), None, pytest.approx(-0.05)]
    assert table(rows).splitlines()[3].startswith("| fcos | soco | 10 (10%) | 30.0")


def test_self_training_is_measured_over_the_same_start_without_it():
    rows = summarize(
        [
            *cells("none", [0.1, 0.1, 0.1]),
            *cells("soco", [0.2, 0.21, 0.19]),
            *cells("soco+unlabelled", [0.24, 0.25, 0.23]),
            *cells("byol+unlabelled", [0.3, 0.31, 0.29]),
        ]
    )
    gains = {row.method: (row.over, row.gain) for row in rows}
    assert gains["soco+unlabelled"] == ("soco", pytest.approx(0.04))
    assert gains["byol+unlabelled"] == ("none", pytest.approx(0.2))  # byol alone is not there
    assert [row.verdict for row in rows][2] == "better than soco"
