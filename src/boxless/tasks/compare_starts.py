"""Starts and detectors of a comparison, from the words of a user and the comparison's recipe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from boxless.detectors.all import DETECTORS
from boxless.detectors.trunk import WHOLE_BODY, with_neck
from boxless.errors import UserError
from boxless.interop.imagenet import WORD
from boxless.methods.all import METHODS
from boxless.recipes.load import load, names
from boxless.recipes.overrides import did_you_mean, override, renamed
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe
from boxless.runs.weights import efficientnet_of, local, weights_file, with_trunk_of
from boxless.tasks.compare_table import REFERENCE, UNLABELLED

DECIDED = {
    "finetune.seed": "--seeds counts them",
    "finetune.label_seed": "--seeds counts them",
    "finetune.label_fraction": "--label-fraction lists them",
    "finetune.shots": "--shots lists them",
    "finetune.label_count": "--label-fraction lists the shares",
    "finetune.evaluate_every": "each cell is measured at its end",
    "finetune.trunk": "it is the pretrained one, pretrain.trunk",
}
"""Keys of a fine-tuning that a comparison sets by itself, and what sets them."""


def refuse_decided(keys: Iterable[str]) -> None:
    """Raise `UserError` if a user sets what the comparison decides."""
    for key in keys:
        for decided, reason in DECIDED.items():
            if key == decided or key.startswith(f"{decided}."):
                raise UserError(f"{key}: has no effect in a comparison: {reason}")


@dataclass(frozen=True)
class Start:
    """Start of fine-tunings: a pretraining by `recipe` from the weights `init`, a file of weights, or neither.

    With `unlabelled`, the fine-tunings learn from the images without labels too, by self-training.
    """

    name: str
    recipe: PretrainRecipe | None = None
    base: str = ""
    init: Path | None = None
    weights: Path | None = None
    unlabelled: bool = False

    @property
    def plain(self) -> str:
        """Name of the same start without self-training."""
        return self.name.removesuffix(UNLABELLED)


def resolve_starts(words: Sequence[str], recipe: CompareRecipe, init: str | None = None) -> list[Start]:
    """The starts that words name: none, one of the comparison's own, a method, a recipe, a run or a weights file.

    Every pretraining starts from the weights `init`, or from random ones.

    Raises:
        UserError: if a word names nothing.
    """
    starts = [_start(word, recipe, init) for word in words]
    if len({start.name for start in starts}) < len(starts):
        raise UserError("methods: two of them have the same name; rename a file or a run's folder")
    return starts


def _start(word: str, recipe: CompareRecipe, init: str | None) -> Start:
    if word.endswith(UNLABELLED):
        start = _start(word.removesuffix(UNLABELLED), recipe, init)
        return replace(start, name=start.name + UNLABELLED, unlabelled=True)
    file = weights_file(init) if init else None
    if word == REFERENCE:
        return Start(word)
    if word == WORD:
        return Start(word, weights=_imagenet(recipe))
    if word in recipe.starts:
        return _own_start(word, recipe, init)
    if word in METHODS:
        return Start(word, _pretrain_recipe(word, recipe), f"{word}-small", file)
    if _names_recipe(word):
        return Start(Path(word).stem, with_trunk_of(load(word, PretrainRecipe), init), word, file)
    if Path(word).exists():
        return Start(Path(word).stem if Path(word).is_file() else Path(word).name, weights=weights_file(word))
    known = [REFERENCE, WORD, *recipe.starts, *METHODS]
    raise UserError(
        f"methods: {word!r} is no method, recipe, run or weights file{did_you_mean(word, [*known, *names()])}; "
        f"methods are {', '.join(known)}"
    )


def _imagenet(recipe: CompareRecipe) -> Path:
    """The embedded weights, which fit one backbone: that of all starts."""
    file, own = Path(str(local(WORD))), recipe.pretrain.trunk
    body = efficientnet_of(file)
    if body is not None and own.backbone.partition(".")[0] != body.backbone:
        raise UserError(
            f"methods: {WORD} is of {body.backbone} and pretrain.trunk.backbone is {own.backbone}, which all starts "
            f"share; set --pretrain.trunk.backbone {body.backbone}"
        )
    return file


def _names_recipe(word: str) -> bool:
    return word in names() or Path(word).suffix in (".yaml", ".yml")


def _own_start(name: str, recipe: CompareRecipe, init: str | None) -> Start:
    """A start that the comparison's recipe describes; its own `weights` go before the comparison's."""
    entry = recipe.starts[name]
    keys = dict(entry) if isinstance(entry, Mapping) else {"method": entry}
    method, file = keys.pop("method", None), keys.pop("weights", renamed(keys, "init", "weights", init))
    if str(method) not in METHODS:
        raise UserError(
            f"starts.{name}: no method {method!r}{did_you_mean(str(method), METHODS)}; "
            f"expected keys such as {{method: soco, method.boxes: 1}}; methods are {', '.join(METHODS)}"
        )
    try:
        file = local(str(file)) if file else None
        common = replace(recipe, pretrain=with_trunk_of(recipe.pretrain, file))
        pretrain = override(_pretrain_recipe(method, common), keys)
        return Start(name, pretrain, f"{method}-small", weights_file(file) if file else None)
    except UserError as error:
        raise UserError(f"starts.{name}: {error}") from error


def _pretrain_recipe(method: str, recipe: CompareRecipe) -> PretrainRecipe:
    """The comparison's pretraining by another method, which brings its own optimiser: one rate does not suit them all.

    What the comparison's optimiser has of its own, such as a rate that the user set, holds for every method.
    """
    common, settings, optim = recipe.pretrain, recipe.pretrain.method, recipe.pretrain.optim
    if common.method.name != method:
        own, usual = load(f"{method}-small", PretrainRecipe), load(f"{common.method.name}-small", PretrainRecipe).optim
        values = {field.name: getattr(optim, field.name) for field in fields(usual)}
        changed = {name: value for name, value in values.items() if value != getattr(usual, name)}
        settings, optim = own.method, replace(own.optim, **changed)
    trunk = with_neck(common.trunk, getattr(settings, "necks", WHOLE_BODY))
    return replace(common, method=settings.at_size(recipe.view_size), optim=optim, trunk=trunk)


@dataclass(frozen=True)
class Finetuning:
    """A detector with its schedule, for every start; `base` names the recipe that it was made from."""

    name: str
    recipe: FinetuneRecipe
    base: str = "faster-rcnn-fpn"


def resolve_detectors(words: Sequence[str], recipe: CompareRecipe) -> list[Finetuning]:
    """The fine-tunings that words name: kinds with the comparison's settings, or recipes with their own.

    Each has the trunk that is pretrained, with the neck that the detector needs; without words it is the recipe's.

    Raises:
        UserError: if a word names nothing, or a detector without AP.
    """
    choices = [_finetuning(word, recipe) for word in words or [recipe.finetune.detector.kind]]
    if len({choice.name for choice in choices}) < len(choices):
        raise UserError("detectors: two of them have the same name; leave one out or rename a file")
    return choices


def _finetuning(word: str, recipe: CompareRecipe) -> Finetuning:
    if word in DETECTORS:
        settings = override(recipe.finetune, {"detector.kind": word})
        choice = Finetuning(word, replace(settings, trunk=recipe.pretrain.trunk))
    elif _names_recipe(word):
        settings = load(word, FinetuneRecipe)
        trunk = replace(recipe.pretrain.trunk, neck=settings.trunk.neck)
        choice = Finetuning(Path(word).stem, replace(settings, trunk=trunk), word)
    else:
        known = [name for name, config in DETECTORS.items() if config.targets != "classes"]
        raise UserError(
            f"detectors: {word!r} is no detector or recipe of fine-tuning{did_you_mean(word, DETECTORS)}; "
            f"detectors are {', '.join(known)}"
        )
    if choice.recipe.detector.targets == "classes":
        raise UserError(f"detectors: {word} is FCN; compare measures AP: use finetune and evaluate for each start")
    return replace(choice, recipe=replace(choice.recipe, evaluate_every=10**9))  # measured at its end
