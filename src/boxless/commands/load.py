"""`boxless.load`, for Python alone."""

from typing import TYPE_CHECKING

from boxless.files import Place

if TYPE_CHECKING:
    from boxless.tasks.detector import Detector


def load(where: Place) -> "Detector":
    """Load a fine-tuned detector, to find objects in images from Python.

    Args:
        where: Folder that boxless finetune wrote, the weights.safetensors in it, or hf://user/name.

    Returns:
        The detector, on the CPU until its first prediction; `predict` moves it to the device there is.

    Raises:
        UserError: If it is no fine-tuned detector.
    """
    from boxless.tasks.detector import Detector

    return Detector.load(where)
