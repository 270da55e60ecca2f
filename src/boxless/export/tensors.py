"""A run's weights as exports take them: its body, its trunk, its detector."""

from pathlib import Path

from torch import Tensor

from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import load_detector, open_run

BODY = "backbone.body."
HEAD = "box_head.layer4."


def body_of(where: str) -> tuple[dict[str, Tensor], TrunkConfig]:
    """A run's body, in torchvision's or timm's names for a classifier, timm's behind `model.`."""
    run, recipe = open_run(where)
    tensors = read_tensors(run.weights)
    body = {key.removeprefix(BODY): value for key, value in tensors.items() if key.startswith(BODY)}
    if recipe.trunk.neck == "c4":  # its box head is the ResNet's last stage
        body |= {f"layer4.{key.partition(HEAD)[2]}": value for key, value in tensors.items() if HEAD in key}
    if not body:
        raise UserError(f"{run.weights}: has no tensors {BODY}*; expected the weights that boxless wrote")
    return body, recipe.trunk


def trunk_of_file(weights: Path) -> dict[str, Tensor]:
    """A pretrained trunk in the names of torchvision's detectors."""
    named = read_tensors(weights).items()
    return {f"roi_heads.{key}" if key.startswith("box_head.") else key: value for key, value in named}


def detector_of(where: str) -> tuple[dict[str, Tensor], tuple[str, ...], FinetuneRecipe]:
    """A fine-tuned detector's tensors, its classes and its recipe."""
    trained, classes, recipe = load_detector(where)
    tensors = trained.state_dict()
    return {key: value for key, value in tensors.items() if key != "head.positives"}, classes, recipe  # of the loss
