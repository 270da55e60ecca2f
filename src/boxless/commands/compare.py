"""`boxless compare`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.tasks.compare import Comparison

DEFAULT_RECIPE = "compare-small"
DEFAULT_METHODS = ("none", "densecl", "soco")


def compare(
    data: Places,
    labels: Place,
    val: Place,
    out: Place,
    methods: Places | None = None,
    detectors: Places | None = None,
    label_fraction: str | None = None,
    shots: str | None = None,
    seeds: int = 3,
    recipe: Place = DEFAULT_RECIPE,
    weights: Place | None = None,
    jobs: int = 1,
    quiet: bool = False,
    **overrides: Any,
) -> "Comparison":
    """Find out whether pretraining helps: the same fine-tuning from several starts, with its spread.

    Every method is pretrained once on the images without labels; every cell (detector, start, amount of labels, seed)
    is fine-tuned, with one schedule per detector. Given again, the command goes on where it was, cell by cell.

    Args:
        data: Images without labels, in the forms of `boxless pretrain`.
        labels: Labels to learn from, in the forms of `boxless finetune`.
        val: Labels to measure AP with.
        out: Folder of the comparison, for comparison.csv, comparison.md, figures/ and report.html.
        methods: Starts, separated by commas or as a list: none (from scratch), imagenet (see `boxless finetune`; all
            starts then have its backbone), a method, a start of the recipe's own, a recipe, a run's folder or a weights
            file. With +unlabelled behind it (imagenet+unlabelled) its fine-tunings also learn from the images of data,
            by self-training. By default none and the recipe's own, or else none,densecl,soco.
        detectors: Detectors that every start is put into, in the same forms: a kind such as retinanet, with the
            recipe's settings, or a fine-tuning recipe or YAML file with its own. By default the recipe's.
        label_fraction: Shares of the labels to learn from, separated by commas; 0.1 by default.
        shots: Labelled boxes per class to learn from, separated by commas (1,5,10), instead of shares; see finetune.
        seeds: Fine-tunings per start and amount of labels; each chooses its own labels, the same for all starts.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file.
        weights: Weights that every pretraining starts from, in the forms of `boxless pretrain`; random by default. The
            start none stays from scratch: to measure these weights without pretraining, name them in methods too.
        jobs: Runs at the same time, each with its share of the cores. Small networks use two cores better as two
            runs than as one. Scores change a little with the number of threads.
        quiet: Print the table only.
        **overrides: Keys of the recipe, such as pretrain.epochs or finetune.iterations.

    Returns:
        The comparison; printed, it is the table.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.data.open import index_images
    from boxless.errors import UserError
    from boxless.files import locked, make_folder
    from boxless.interop.imagenet import WORD
    from boxless.recipes.load import load
    from boxless.recipes.overrides import override, renamed
    from boxless.recipes.schema import CompareRecipe
    from boxless.report.build import write_report
    from boxless.runs.weights import local, with_trunk_of
    from boxless.tasks.compare import Plan, run_comparison
    from boxless.tasks.compare_starts import refuse_decided, resolve_detectors, resolve_starts
    from boxless.tasks.compare_table import NOTE, UNLABELLED, amounts_of
    from boxless.tasks.labels import training_labels, validation_labels
    from boxless.training.faults import one_line_faults
    from boxless.training.signals import stoppable

    data, labels, val, out = as_text(data), as_text(labels), as_text(val), as_text(out)
    recipe = as_text(recipe)
    weights = local(as_text(renamed(overrides, "init", "weights", weights)))
    refuse_decided(overrides)
    common = load(recipe, CompareRecipe)
    chosen = None if methods is None else _words(methods)
    has_embedded = any(word.removesuffix(UNLABELLED) == WORD for word in chosen or ())
    body = local(WORD) if weights is None and has_embedded else weights  # all starts have the same
    common = replace(common, pretrain=with_trunk_of(common.pretrain, body))
    settings = override(common, overrides)
    words = ["none", *settings.starts] if settings.starts else DEFAULT_METHODS
    words = words if chosen is None else chosen
    starts = resolve_starts(words, settings, weights)
    choices = resolve_detectors(_words(detectors or ()), settings)
    amounts = amounts_of(label_fraction, shots)
    if not starts or min(seeds, jobs) < 1:
        raise UserError("expected at least one of methods, and seeds and jobs of 1 or more")
    train_data = training_labels(labels, quiet)
    val_data = validation_labels(val, train_data.classes, quiet)
    images = index_images(data) if any(start.recipe or start.unlabelled for start in starts) else None
    folder = Path(out)
    make_folder(folder)
    with stoppable(), locked(folder / ".lock", f"--out {out}"), one_line_faults(folder):
        plan = Plan(starts, choices, amounts, seeds, folder, jobs, quiet)
        comparison = run_comparison(plan, images, train_data, val_data)
    print(f"\n{comparison}\n\n{NOTE}\n\nwritten: {out}/comparison.md, comparison.csv, figures/")
    print(f"report: {write_report([out])}")
    return comparison


def _words(given: Places) -> list[str]:
    """Words that are separated by commas, in one text or several."""
    places = [given] if isinstance(given, str | Path) else given
    return [word.strip() for place in places for word in str(place).split(",") if word.strip()]
