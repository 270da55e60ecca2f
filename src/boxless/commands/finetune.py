"""`boxless finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxless.recipes.schema import FinetuneRecipe
    from boxless.runs.run import Run

DEFAULT_RECIPE = "faster-rcnn-fpn"


def finetune(
    data: str | list[str],
    val: str | list[str],
    out: str,
    weights: str | None = None,
    recipe: str = DEFAULT_RECIPE,
    allow_changes: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> "Run":
    """Fine-tune a detector on labelled images, from pretrained weights or from scratch.

    Args:
        data: Labels to learn from: COCO JSON, a Pascal VOC folder, a YOLO data.yaml; a suffix :split picks a split.
            Several sets, with + between them or as a list, become one (VOCdevkit/VOC2007:trainval+VOC2012:trainval).
            With detector.kind=fcn the class maps of a VOC or Cityscapes folder, or else masks.
        val: Labels to measure AP (of FCN mIoU) with, in the same forms.
        out: Folder of the run. Given again, an unfinished run goes on where it was.
        weights: A run, whose trunk is then taken too, or a file of torchvision, timm, MoCo, DINO, Detectron2,
            MMDetection and others, whose names are recognised, or hf://user/name; by default nothing, from scratch.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file.
        allow_changes: Go on with a run although settings or data are not those that it was started with, which is
            refused else; says what differs.
        quiet: Print nothing but errors.
        **overrides: Keys of the recipe, such as label_fraction.

    Returns:
        The run; summary.json has its AP, weights.safetensors the detector.

    Raises:
        UserError: For anything that the caller can mend.
    """
    from boxless.recipes.load import describe
    from boxless.recipes.overrides import override
    from boxless.runs.weights import local, weights_file
    from boxless.tasks.finetune import run_finetuning, with_fitting_neck, with_trunk_of
    from boxless.tasks.labels import training_labels, validation_labels
    from boxless.training.device import training_fabric
    from boxless.training.distributed import rank
    from boxless.training.signals import stoppable

    weights = local(weights)
    settings: FinetuneRecipe = override(with_trunk_of(recipe_of({"recipe": recipe}), weights), overrides)
    settings = with_fitting_neck(settings)
    file = weights_file(weights) if weights else None
    segments = settings.detector.kind == "fcn"
    with stoppable():
        training_fabric(settings.precision)  # where several processes train, they meet here
        silent = quiet or rank() > 0
        train_data = training_labels(data, silent, segments)
        val_data = validation_labels(val, train_data.classes, silent, segments)
        text = describe(settings, recipe)
        return run_finetuning(settings, text, Path(out), train_data, val_data, file, quiet, allow_changes)


def recipe_of(arguments: dict[str, Any]) -> "FinetuneRecipe":
    """The recipe that the arguments name, before any key is changed."""
    from boxless.recipes.load import load
    from boxless.recipes.schema import FinetuneRecipe

    return load(arguments.get("recipe", DEFAULT_RECIPE), FinetuneRecipe)
