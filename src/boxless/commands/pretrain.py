"""`boxless pretrain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxless.recipes.schema import PretrainRecipe
    from boxless.runs.folder import Run

DEFAULT_RECIPE = "soco-small"


def pretrain(
    data: str | list[str],
    out: str,
    recipe: str = DEFAULT_RECIPE,
    init: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> "Run":
    """Pretrain the label-free part of a detector on images without labels.

    Args:
        data: Images: a folder (searched through and through), several folders, a list file, or a labelled data set
            whose labels are ignored.
        out: Folder of the run. Given again, an unfinished run goes on where it was.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file.
        init: Weights to start from: a run, or a file with torchvision's names.
        quiet: Print nothing but errors.
        **overrides: Keys of the recipe, such as optim.base_lr.

    Returns:
        The run; its weights are in weights.safetensors.

    Raises:
        UserError: For anything that the caller can mend.
    """
    from boxless.data.index import index_images
    from boxless.recipes.catalogue import describe
    from boxless.recipes.overrides import override
    from boxless.runs.pretraining import prepare_boxes, run_pretraining
    from boxless.runs.weights import weights_file

    settings: PretrainRecipe = override(recipe_of({"recipe": recipe}), overrides)
    start = weights_file(init) if init else None  # before hours of proposals
    index = index_images(data)
    folder = Path(out)
    boxes = prepare_boxes(index, settings, folder, quiet) if settings.method.needs_boxes else None
    return run_pretraining(index, boxes, settings, describe(settings, recipe), folder, start, quiet)


def recipe_of(arguments: dict[str, Any]) -> "PretrainRecipe":
    """The recipe that the arguments name, before any key is changed."""
    from boxless.recipes.catalogue import load
    from boxless.recipes.schema import PretrainRecipe

    return load(arguments.get("recipe", DEFAULT_RECIPE), PretrainRecipe)
