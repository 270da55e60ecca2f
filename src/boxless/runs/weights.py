"""Which file a user means by weights, and which trunk it is of."""

from dataclasses import replace
from pathlib import Path

from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.interop.hub import fetch, is_address
from boxless.interop.weights import parts_in
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run


def local(where: str | None) -> str | None:
    """A place that a user names, fetched first where it is on the Hugging Face Hub (hf://user/name).

    Raises:
        UserError: if it cannot be fetched.
    """
    return str(fetch(where)) if where is not None and is_address(where) else where


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
            state = "did not finish; run the same command again" if run.recipe_file.is_file() else "is not a run"
            raise UserError(f"weights {path}: this folder {state} (no weights.safetensors)")
        return run.weights
    if not path.is_file():
        raise UserError(f"weights {path}: no such file or run")
    return path


def trunk_of(weights: str | Path | None) -> TrunkConfig | None:
    """The trunk of the run, a pretraining or a fine-tuning, whose folder or weights these are; None where of no run."""
    if weights is None:
        return None
    path = Path(weights)
    run = Run(path if path.is_dir() else path.parent)
    if path not in (run.path, run.weights) or not run.recipe_file.is_file():
        return None
    recipe: object = load(run.recipe_file, object)
    return recipe.trunk if isinstance(recipe, PretrainRecipe | FinetuneRecipe) else None


def adopt(own: TrunkConfig, weights: str | Path | None) -> TrunkConfig:
    """The trunk of the run that weights are of, with a recipe's own neck and what else the weights do not decide.

    A method of whole backbones leaves a protocol its kind of box head; sizes are the run's, so that starts are alike.
    """
    source = trunk_of(weights)
    if source is None or weights is None:
        return own
    # Group norm has no running statistics: nothing but itself can take over its weights.
    trunk = replace(source, norm="group" if source.norm == "group" else own.norm, neck=own.neck)
    if source.neck == "c4" or "RoI head" not in parts_in(weights_file(weights)):
        trunk = replace(trunk, box_head=own.box_head)
    if source.neck != "transformer":
        trunk = replace(trunk, transformer=own.transformer)
    if source.neck != "hybrid":
        trunk = replace(trunk, hybrid=own.hybrid)
    return trunk
