import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from boxless.commands.recipes import recipes as recipes_command
from boxless.detectors.all import DETECTORS
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.one_stage import RetinaNetConfig
from boxless.detectors.rt_detr import RTDETRConfig
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.errors import UserError
from boxless.recipes import load as catalogue
from boxless.recipes.overrides import accepted, did_you_mean, keys, override, parse, spell, to_yaml
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe


@dataclass(frozen=True)
class Optim:
    base_lr: float = 0.1
    """Learning rate for a batch
    of 256."""
    betas: tuple[float, float] = (0.9, 0.999)
    name: Literal["sgd", "lars"] = "sgd"

    def __post_init__(self) -> None:
        if self.base_lr < 0:
            raise ValueError(f"base_lr must be positive, got {self.base_lr}")


@dataclass(frozen=True)
class Alpha:
    name: Literal["alpha"] = "alpha"
    depth: int = 2


@dataclass(frozen=True)
class Beta:
    name: Literal["beta"] = "beta"
    width: int = 3


@dataclass(frozen=True)
class Recipe:
    method: Alpha | Beta = Beta()
    optim: Optim = field(default_factory=Optim)
    epochs: int = 100
    ema: bool = False
    seed: int | None = None
    note: str = ""
    weights: Path | None = None
    sizes: tuple[int, ...] = (224, 112)
    terms: tuple[str, ...] = ()


optims = st.builds(
    Optim,
    base_lr=st.floats(0, 1e6),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    name=st.sampled_from(["sgd", "lars"]),
)
recipes = st.builds(
    Recipe,
    method=st.builds(Beta, width=st.integers()),
    optim=optims,
    epochs=st.integers(),
    ema=st.booleans(),
    seed=st.none() | st.integers(),
    note=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs", "S"))),
    weights=st.none() | st.just(Path("runs/a b.safetensors")),
    sizes=st.lists(st.integers()).map(tuple),
    terms=st.lists(st.sampled_from(["global", "true", "1", "1e3", "null", "a,b", "a: b"])).map(tuple),
)


@given(recipes)
def test_yaml_round_trip(recipe: Recipe) -> None:
    assert override(Recipe(), yaml.safe_load(to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.base_lr", "1e-3", 1e-3),
        ("optim.base_lr", 1, 1.0),
        ("optim.betas", "0.5,0.6", (0.5, 0.6)),
        ("optim.betas", "[0.5, 0.6]", (0.5, 0.6)),
        ("optim.betas", [0.5, 0.6], (0.5, 0.6)),
        ("optim.name", "lars", "lars"),
        ("method.width", "7", 7),
        ("method.name", "beta", "beta"),
        ("ema", "true", True),
        ("seed", "null", None),
        ("seed", "3", 3),
        ("note", "3", "3"),
        ("note", "", ""),
        ("weights", "a/b", Path("a/b")),
        ("sizes", "96", (96,)),
        ("terms", "global,object", ("global", "object")),
    ],
)
def test_values_are_parsed_as_their_type(key: str, value: object, expected: object) -> None:
    changed = keys(override(Recipe(), {key: value}))
    assert changed[key].value == expected and type(changed[key].value) is type(expected)
    assert {name for name in changed if changed[name].value != keys(Recipe())[name].value} <= {key}


def test_groups_as_mappings_and_as_instances() -> None:
    assert override(Recipe(), {"optim": {"base_lr": "0.2"}, "epochs": 3}) == Recipe(optim=Optim(0.2), epochs=3)
    assert override(Recipe(), {"optim": Optim(0.3)}) == Recipe(optim=Optim(0.3))
    assert override(Recipe(), {"optim.betas": "0,0", "optim": Optim(0.3)}) == Recipe(optim=Optim(0.3, (0, 0)))
    assert override(Recipe(), {"method.depth": 5, "method": Alpha()}) == Recipe(method=Alpha(depth=5))
    assert override(Recipe(), {}) == Recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optim.lr": "0.1"},
            "unknown key 'optim.lr': did you mean 'optim.base_lr'? keys of optim: base_lr, betas",
        ),
        ({"epoch": 3}, "unknown key 'epoch': did you mean 'epochs'? keys: method.*, optim.*, epochs"),
        ({"lr": 3}, "did you mean 'optim.base_lr'?"),
        ({"optim.base_lr.x": 3}, "unknown key 'optim.base_lr.x'"),
        ({"optim": 3}, "'optim' is a group of keys: keys of optim: base_lr"),
        ({"epochs": "many"}, "epochs: expected int, got 'many'"),
        ({"epochs": 2.5}, "epochs: expected int, got 2.5"),
        ({"epochs": True}, "epochs: expected int, got True"),
        ({"optim.base_lr": 10**400}, "optim.base_lr: expected float, got 1000"),
        ({"seed": "x"}, "seed: expected int or null, got 'x'"),
        ({"optim.name": "adam"}, "optim.name: expected sgd|lars, got 'adam'"),
        ({"optim.betas": "0.9"}, "optim.betas: expected float,float, got '0.9'"),
        ({"method.name": "alpha"}, "can't become 'alpha': choose a recipe of that method"),
        ({"method.depth": 1}, "unknown key 'method.depth'"),
        ({"optim.base_lr": -1}, "optim.base_lr must be positive, got -1.0"),
    ],
)
def test_mistakes_are_one_line_that_helps(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(Recipe(), changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("epochs", [0, -1])
def test_a_pretraining_of_no_epochs_is_refused(epochs: float) -> None:
    with pytest.raises(UserError, match=r"^epochs: expected more than 0"):
        override(catalogue.load("byol-small", object), {"epochs": epochs})


@pytest.mark.parametrize(
    ("recipe", "key", "wrong", "least"),
    [
        ("byol-small", "seed", -1, 0),
        ("faster-rcnn-fpn", "epochs", -0.5, 0),
        ("byol-small", "workers", -1, 0),
        ("byol-small", "batch_size", 0, 1),
        ("byol-small", "checkpoint_every", 0, 1),
        ("byol-small", "health_every", 0, 1),
        ("byol-small", "optim.warmup_epochs", -1, 0),
        ("byol-small", "optim.reference_batch", 0, 1),
        ("byol-small", "optim.clip_norm", -1, 0),
        ("faster-rcnn-fpn", "label_seed", -1, 0),
        ("faster-rcnn-fpn", "iterations", -1, 0),
        ("faster-rcnn-fpn", "batch_size", 0, 1),
        ("faster-rcnn-fpn", "accumulate", 0, 1),
        ("faster-rcnn-fpn", "checkpoint_every", 0, 1),
        ("faster-rcnn-fpn", "min_size", (480, 0), 1),
        ("faster-rcnn-fpn", "optim.warmup_iterations", -1, 0),
        ("compare-small", "finetune.batch_size", 0, 1),
        ("compare-small", "pretrain.optim.warmup_epochs", -1, 0),
        ("demo", "pretrain.seed", -1, 0),
        ("demo", "view_size", 0, 1),
    ],
)
def test_numbers_out_of_range_name_their_key_in_flags_and_files(
    recipe: str, key: str, wrong: object, least: int, tmp_path: Path
) -> None:
    got = wrong[-1] if isinstance(wrong, tuple) else wrong
    message = f"{key}: expected {least} or more, got {got}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}[.0]*$"):
        override(catalogue.load(recipe, object), {key: wrong})
    *groups, last = key.split(".")
    content: dict[str, object] = {last: list(wrong) if isinstance(wrong, tuple) else wrong}
    for group in reversed(groups):
        content = {group: content}
    (file := tmp_path / "own.yaml").write_text(yaml.safe_dump({"recipe": recipe, **content}))
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}: {message}')}[.0]*$"):
        catalogue.load(file, object)
    least_of_all = (least,) if isinstance(wrong, tuple) else least
    assert keys(override(catalogue.load(recipe, object), {key: least_of_all}))[key].value == least_of_all


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("byol-small", {"workers": None, "shard_buffer": None, "compile": None, "optim.clip_norm": None}),
        ("faster-rcnn-fpn", {"accumulate": "auto", "iterations": None, "evaluate_every": None, "label_count": None}),
        ("faster-rcnn-fpn", {"workers": 0, "precise_norms": 0, "repeat_threshold": 0.0, "min_size": ()}),
    ],
)
def test_what_is_no_number_and_what_0_turns_off_may_stand(recipe: str, changes: dict[str, object]) -> None:
    changed = keys(override(catalogue.load(recipe, object), changes))
    assert {key: changed[key].value for key in changes} == changes


def test_another_detector_keeps_what_both_have_and_takes_its_own_neck() -> None:
    small = override(
        catalogue.load("faster-rcnn-fpn", FinetuneRecipe), {"detector.detections": 7, "detector.rpn_samples": 9}
    )
    changed = override(small, {"detector.kind": "retinanet", "detector": {"loss_normalizer": "moving_average"}})
    assert changed.detector == RetinaNetConfig(detections=7, loss_normalizer="moving_average")
    assert (small.trunk.neck, changed.trunk.neck) == ("fpn", "fpn_p3")
    compared = override(catalogue.load("compare-small", CompareRecipe), {"finetune.detector.kind": "rt_detr"})
    assert isinstance(compared.finetune.detector, RTDETRConfig)
    with pytest.raises(UserError, match=r"detector.kind: expected faster_rcnn\|mask_rcnn.*, got 'yolo'"):
        override(small, {"detector.kind": "yolo"})


def test_help_shows_the_keys_of_the_chosen_detector_and_neck_alone() -> None:
    faster = catalogue.load("faster-rcnn-fpn", FinetuneRecipe)
    detr = override(faster, {"detector.kind": "detr"})
    assert "detector.rpn_samples" in keys(faster) and "trunk.transformer.width" not in keys(faster)
    assert "detector.rpn_samples" not in keys(detr) and "trunk.transformer.width" in keys(detr)
    assert {"detector.no_object", "detector.fcn.head", "trunk.hybrid.heads", "crop.size"} <= accepted(faster)
    assert keys(faster)["detector.kind"].type == Literal[tuple(DETECTORS)]


def test_keys_of_all_detectors_in_older_recipes_are_read(tmp_path: Path) -> None:
    """Recipes had every detector's keys, RT-DETR's and FCN's in groups of their own; those of others have no effect."""
    old = """
recipe: faster-rcnn-fpn
detector:
  kind: KIND
  anchor_sizes: [16, 32, 64, 128, 256]
  mask_norm: false
  loss_normalizer: image
  score_threshold: 0.1
  no_object: never read
  learned_proposals: 300
  rt_detr: {queries: 12, layers: 2, denoising: 0}
  fcn: {head: 16s, align_corners: true, window: null}
"""
    file = tmp_path / "recipe.yaml"
    for kind, wanted in {
        "faster_rcnn": FasterRCNNConfig(anchor_sizes=(16, 32, 64, 128, 256), score_threshold=0.1),
        "rt_detr": RTDETRConfig(queries=12, layers=2, denoising=0, score_threshold=0.1),
        "fcn": FCNConfig(head="16s", align_corners=True),
    }.items():
        file.write_text(old.replace("KIND", kind))
        assert catalogue.load(file, FinetuneRecipe).detector == wanted
    assert override(catalogue.load(file, FinetuneRecipe), {"detector.fcn.head": "d8"}).detector == FCNConfig(
        align_corners=True
    )
    file.write_text(old.replace("KIND", "fcos") + "  no_objects: 1\n")
    with pytest.raises(UserError, match=r"unknown key 'detector.no_objects'.*keys of detector: kind, score_threshold"):
        catalogue.load(file, FinetuneRecipe)


def test_keys_carry_type_value_and_docstring() -> None:
    assert keys(replace(Recipe(), method=Alpha()))["method.depth"] == (int, 2, "")
    assert keys(Recipe())["optim.base_lr"] == (float, 0.1, "Learning rate for a batch of 256.")
    assert list(keys(Recipe()))[:3] == ["method.name", "method.width", "optim.base_lr"]


def test_unions_with_text_take_commas_as_they_are() -> None:
    assert parse("methods", str | list[str], "none,soco") == "none,soco"
    assert spell(Path | None) == "path or null"


@pytest.mark.parametrize(
    ("word", "near"),
    [("epoch", "epochs"), ("lr", "optim.base_lr"), ("optim.lr", "optim.base_lr"), ("soc", "soco-r50"), ("zzz", None)],
)
def test_nearest_names(word: str, near: str | None) -> None:
    choices = ["epochs", "optim.base_lr", "optim.name", "soco-r50"]
    assert did_you_mean(word, choices) == (f": did you mean {near!r}?" if near else "")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """One more shipped recipe, `toy-one`."""
    recipe = Recipe(epochs=7)
    beside, described = catalogue._recipes_beside, catalogue.docstrings()
    monkeypatch.setattr(catalogue, "docstrings", lambda: {**described, "toy-one": "A toy."})
    monkeypatch.setattr(catalogue, "_recipes_beside", lambda name: {**beside(name), "toy-one": recipe})
    return recipe


def test_recipe_by_name_and_by_file(toy: Recipe, tmp_path: Path) -> None:
    assert "toy-one" in catalogue.names() and catalogue.load("toy-one", object) == toy
    file = tmp_path / "recipe.yaml"
    file.write_text("recipe: toy-one\noptim:\n  base_lr: 1e-3\n")
    changed = catalogue.load(file, object)
    assert changed == override(toy, {"optim.base_lr": 1e-3})
    file.write_text(catalogue.describe(changed, file))
    assert catalogue.load(str(file), object) == changed and "recipe: toy-one\n" in file.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3", "expected a line `recipe: NAME`"),
        ("recipe: [", "not a YAML file"),
        ("recipe: toy-two", "unknown recipe 'toy-two': did you mean 'toy-one'?"),
        ("recipe: toy-one\nepoch: 3", "recipe.yaml: unknown key 'epoch'"),
        (None, "can't read this recipe file"),
    ],
)
def test_recipe_file_mistakes(toy: Recipe, tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        catalogue.load(file, object)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_method_is_replaced_by_a_method_alone() -> None:
    small, paper = catalogue.load("byol-small", PretrainRecipe), catalogue.load("moco-r50", PretrainRecipe)
    assert override(small, {"method": paper.method, "epochs": 3}).method == paper.method
    with pytest.raises(UserError, match="'method' is a group of keys"):
        override(small, {"method": paper.optim})


def test_recipe_of_another_kind(toy: Recipe) -> None:
    with pytest.raises(UserError, match="recipe 'toy-one' is a Recipe, expected a Optim"):
        catalogue.load("toy-one", Optim)


@pytest.mark.parametrize("name", catalogue.names())
def test_shipped_recipes(name: str) -> None:
    recipe = catalogue.load(name, object)
    assert override(recipe, yaml.safe_load(to_yaml(recipe))) == recipe


def test_every_shipped_recipe_has_a_description_of_one_line() -> None:
    described = catalogue.docstrings()
    assert list(described) == catalogue.names()
    assert all(text.partition("\n")[0].endswith(".") for text in described.values())


def test_the_command_lists_all_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    recipes_command()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == catalogue.names()
    recipes_command("byol-r50")
    shown = capsys.readouterr().out
    assert shown.startswith("BYOL on ResNet-50") and "\nrecipe: byol-r50\nmethod:\n" in shown
    recipes_command(paper="soco")
    assert "docs/recipes.md" in capsys.readouterr().out
