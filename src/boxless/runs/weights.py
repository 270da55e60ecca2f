"""The file that a user means by weights, and the trunk to build for it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from boxless.detectors.trunk import Neck, TrunkConfig, with_neck
from boxless.errors import UserError
from boxless.interop.efficientnet import EfficientNet, efficientnet_in
from boxless.interop.files import read_tensors
from boxless.interop.heads import Names
from boxless.interop.hub import fetch, is_address
from boxless.interop.imagenet import WORD, embedded_weights, is_installed
from boxless.interop.weights import parts_in, trunk_as_in
from boxless.recipes.load import load
from boxless.recipes.schema import TrainingRecipe
from boxless.runs.run import Run

NONE = "none"
"""The word for random weights."""
R = TypeVar("R", bound=TrainingRecipe)


def local(where: str | None) -> str | None:
    """A place that a user names, fetched first if it is on the Hugging Face Hub (hf://user/name).

    The word imagenet names the file of an installed package; the word none gives None, for random weights.

    Raises:
        UserError: if it cannot be fetched, or the package is missing.
    """
    if where == NONE:
        return None
    if where == WORD:
        return str(embedded_weights())
    return str(fetch(where)) if where is not None and is_address(where) else where


def usual_start(planned: bool, given: Collection[str]) -> str | None:
    """The weights to start from where the user names none: for a planned run those of an installed package.

    Args:
        planned: true if no recipe was named.
        given: keys that the user has set; one of the trunk's asks for another network.
    """
    own_trunk = any(key.startswith("trunk.") for key in given)
    return WORD if planned and not own_trunk and is_installed() else None


def weights_file(where: str | Path) -> Path:
    """The weights of a run's folder, or the file itself.

    Raises:
        UserError: if there is neither.
    """
    path = Path(where)
    if path.is_dir():
        run = Run(path)
        if not run.weights.is_file() and (path / "model.safetensors").is_file():
            return path / "model.safetensors"  # a folder of transformers
        if not run.weights.is_file():
            state = "did not finish; repeat the command" if run.recipe_file.is_file() else "is not a run"
            raise UserError(f"weights {path}: this folder {state} (no weights.safetensors)")
        return run.weights
    if not path.is_file():
        raise UserError(f"weights {path}: no such file or run")
    return path


def recipe_of(weights: str | Path | None) -> object | None:
    """The recipe of the run whose folder or weights these are; None if they are of no run."""
    if weights is None:
        return None
    path = Path(weights)
    run = Run(path if path.is_dir() else path.parent)
    if path not in (run.path, run.weights) or not run.recipe_file.is_file():
        return None
    recipe: object = load(run.recipe_file, object)
    return recipe


def trunk_of(weights: str | Path | None) -> TrunkConfig | None:
    """The trunk of the run, a pretraining or a fine-tuning, whose folder or weights these are; None if of no run."""
    recipe = recipe_of(weights)
    return recipe.trunk if isinstance(recipe, TrainingRecipe) else None


def efficientnet_of(weights: str | Path | None) -> EfficientNet | None:
    """The EfficientNet that a file is of by its names; None for any other file, or none."""
    if weights is None or not Path(weights).is_file():
        return None
    try:
        return efficientnet_in(read_tensors(Path(weights)))
    except UserError:  # is said where the file is loaded
        return None


def names_of(weights: Path) -> Names:
    """Names of classes and keypoints in a file of weights, if it lies in the folder of a fine-tuning."""
    run = Run(weights.parent)
    if weights != run.weights or not run.recipe_file.is_file():
        return Names()
    labels = run.labels
    return Names(run.classes, tuple(labels.get("skeleton", {}).get("names", ()))) if labels else Names()


def resolve_trunk(own: TrunkConfig, weights: str | Path | None, necks: Sequence[Neck]) -> TrunkConfig:
    """The trunk to build: the one of the run that the weights come from, with what a recipe decides.

    The recipe decides the norm and, if the weights have no box head, the kind of box head; sizes are the run's. The
    neck is the recipe's if that is not the first of `necks`, the usual one; else the run's; and if it is not one of
    `necks`, the usual one. A file whose names say which EfficientNet it is of decides backbone, mean and std.

    Args:
        own: the recipe's trunk, which is taken if the weights are not of a run.
        weights: a run, its weights or another file, if any.
        necks: the necks that the detector or the method takes, the usual one first.
    """
    source = trunk_of(weights)
    if source is None or weights is None:
        body = efficientnet_of(weights)
        if body is not None:
            own = replace(own, backbone=body.backbone, mean=body.mean, std=body.std)
        return with_neck(own, necks)
    # Group norm has no running statistics: nothing but itself can take over its weights.
    trunk = replace(
        source,
        norm="group" if source.norm == "group" else own.norm,
        neck=own.neck if own.neck != necks[0] else source.neck,
    )
    if source.neck == "c4" or "RoI head" not in parts_in(weights_file(weights)):
        trunk = replace(trunk, box_head=own.box_head)
    if source.neck != "transformer":
        trunk = replace(trunk, transformer=own.transformer)
    if source.neck != "hybrid":
        trunk = replace(trunk, hybrid=own.hybrid)
    return with_neck(trunk, necks)


def built_as_in(trunk: TrunkConfig, weights: str | Path | None) -> TrunkConfig:
    """The trunk with pyramid and box head as in a detector's file; as it is if the weights are of a run."""
    if weights is None or trunk_of(weights) is not None or not Path(weights).exists():
        return trunk
    return trunk_as_in(trunk, weights_file(weights))


def with_trunk_of(recipe: R, weights: str | Path | None) -> R:
    """A recipe of pretraining or fine-tuning with the trunk of its weights; see `resolve_trunk`."""
    trunk = resolve_trunk(recipe.trunk, weights, recipe.necks)
    return replace(recipe, trunk=trunk)  # type: ignore[type-var] # a dataclass
