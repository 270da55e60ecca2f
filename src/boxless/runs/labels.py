"""Labels as a run takes them: read, reported on, and a share of them chosen."""

import sys

import numpy as np

from boxless.data.class_maps import read_segmentation
from boxless.data.labels import LabelledData, problem_report, read_labels
from boxless.errors import UserError
from boxless.recipes.schema import FinetuneRecipe


def training_labels(where: str, quiet: bool, segments: bool = False) -> LabelledData:
    """Labels to learn from, for semantic segmentation where `segments`; broken entries are reported first."""
    data = read_segmentation(where, "train") if segments else read_labels(where, "train")
    _report(data, quiet)
    if not any(len(image.boxes) or image.class_map for image in data.images):
        raise UserError(f"{where}: no labelled object is left in {len(data)} images; nothing to learn from")
    return data


def validation_labels(where: str, classes: tuple[str, ...], quiet: bool, segments: bool = False) -> LabelledData:
    """Labels to measure against, in the classes that were learned."""
    read = read_segmentation if segments else read_labels
    data = read(where, "val", classes=classes)
    _report(data, quiet)
    return data


def choose_labels(data: LabelledData, recipe: FinetuneRecipe) -> LabelledData:
    """The images to learn from: the first ones of an order drawn from label_seed, so that shares hold smaller ones.

    Raises:
        UserError: where more is asked for than there is.
    """
    if not 0 < recipe.label_fraction <= 1:
        raise UserError(f"label_fraction: {recipe.label_fraction}; expected more than 0 and at most 1")
    count = recipe.label_count if recipe.label_count is not None else max(1, round(recipe.label_fraction * len(data)))
    if not 0 < count <= len(data):
        raise UserError(f"label_count: {count}; expected 1 to {len(data)}, the labelled images in {data.origin}")
    order = np.random.default_rng((recipe.label_seed, 2)).permutation(len(data))
    chosen = data.subset(sorted(order[:count].tolist()))
    if not any(image.class_map or (~image.crowd).any() for image in chosen.images):
        raise UserError(
            f"label_seed: {recipe.label_seed} chooses {count} images without any object; take another or more labels"
        )
    return chosen


def _report(data: LabelledData, quiet: bool) -> None:
    if data.problems and not quiet:
        print(problem_report(data.problems), file=sys.stderr, flush=True)
