"""A run's weights as exports take them, and the text beside an export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save
from torch import Tensor

from boxless.errors import UserError
from boxless.interop.exported import Exported
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import load_detector

BODY = "backbone.body."
HEAD = "box_head.layer4."
LICENCE = """\
The weights are yours: boxless is under the Apache License 2.0 and claims nothing in what it trained. The images and the
weights that this training started from may have terms of their own."""


@dataclass(frozen=True)
class Library:
    """Another library, and how its own path is asked.

    Attributes:
        name: in words.
        module: name to import, if boxless does not need the library itself.
        features: expression of the maps that its `model` makes of an image `x` (1, 3, H, W); empty for a detector,
            whose lines end in `detect`.
        part: the part that makes these maps: C5 averaged over the image, the body's stages, or the pyramid's levels.
    """

    name: str
    module: str | None = None
    features: str = ""
    part: Literal["C5", "body", "pyramid"] = "body"


@dataclass(frozen=True)
class Export:
    """Weights for another library.

    Attributes:
        write: puts them at a path and returns a description.
        about: a description in words.
        facts: facts of the run that the lines depend on.
        lines: the lines of Python that load them there.
        library: the library that they are tried in; None if there is nothing to try.
        keeps_threshold: true if the score threshold is in the file and not in the lines.
    """

    write: Callable[[Path], str]
    about: str
    facts: Exported
    lines: Callable[[Exported], str]
    library: Library | None
    keeps_threshold: bool = False

    @property
    def text(self) -> str:
        """The text beside the file: a description, the colours it was trained on, the licence, and the lines."""
        trunk = self.facts.trunk
        colours = f"It has seen RGB in 0..1, minus {list(trunk.mean)}, divided by {list(trunk.std)}."
        return "\n".join([self.about, colours, LICENCE, "", self.lines(self.facts), ""])


def of_tensors(tensors: dict[str, Tensor]) -> Callable[[Path], str]:
    """A writer of a .safetensors file."""
    content = save({key: value.contiguous() for key, value in tensors.items()}, metadata={"format": "pt"})
    return of_bytes(content, f"{len(tensors)} tensors")


def of_bytes(content: bytes, description: str) -> Callable[[Path], str]:
    """A writer of a file of that content."""

    def write(path: Path) -> str:
        path.write_bytes(content)
        return description

    return write


def numbered(classes: Sequence[str], first: int) -> str:
    """Classes with their numbers, from `first` on."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes, first))


def body_tensors(run: Run) -> dict[str, Tensor]:
    """A run's body, in torchvision's or timm's names for a classifier, timm's behind `model.`."""
    tensors = read_tensors(run.weights)
    body = {key.removeprefix(BODY): value for key, value in tensors.items() if key.startswith(BODY)}
    if run.recipe.trunk.neck == "c4":  # its box head is the ResNet's last stage
        body |= {f"layer4.{key.partition(HEAD)[2]}": value for key, value in tensors.items() if HEAD in key}
    if not body:
        raise UserError(f"{run.weights}: has no tensors {BODY}*; expected the weights that boxless wrote")
    return body


def trunk_tensors(run: Run) -> dict[str, Tensor]:
    """A pretrained trunk in the names of torchvision's detectors."""
    tensors = read_tensors(run.weights).items()
    return {f"roi_heads.{key}" if key.startswith("box_head.") else key: value for key, value in tensors}


def detector_tensors(run: Run) -> tuple[dict[str, Tensor], tuple[str, ...], FinetuneRecipe]:
    """A fine-tuned detector's tensors, its classes and its recipe."""
    detector, classes, recipe = load_detector(run.path)
    tensors = detector.state_dict()
    return {key: value for key, value in tensors.items() if key != "head.positives"}, classes, recipe  # of the loss
