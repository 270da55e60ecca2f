"""Labels as a run takes them: read, reported on, and a share of them chosen."""

import sys
from pathlib import Path

from boxless.data.annotations.class_maps import read_segmentation
from boxless.data.annotations.read import LabelledData, problem_report, read_labels
from boxless.data.annotations.select import chosen_rows, listed_rows
from boxless.errors import UserError
from boxless.recipes.schema import FinetuneRecipe


def training_labels(where: str | list[str], quiet: bool, segments: bool = False) -> LabelledData:
    """Labels to learn from, for semantic segmentation where `segments`; broken entries are reported first."""
    data = read_segmentation(_as_one(where), "train") if segments else read_labels(where, "train")
    _report(data, quiet)
    if not any(len(image.boxes) or image.class_map for image in data.images):
        raise UserError(f"{where}: no labelled object is left in {len(data)} images; there is nothing to learn from")
    return data


def validation_labels(
    where: str | list[str], classes: tuple[str, ...], quiet: bool, segments: bool = False
) -> LabelledData:
    """Labels to measure against, in the classes that were learned."""
    if segments:
        data = read_segmentation(_as_one(where), "val", classes=classes)
    else:
        data = read_labels(where, "val", classes=classes)
    _report(data, quiet)
    return data


def choose_labels(data: LabelledData, recipe: FinetuneRecipe) -> LabelledData:
    """The images to learn from: those of label_list, else by label_choice.

    Raises:
        UserError: if more is asked for than there is, or a list beside a share.
    """
    data = data.with_difficult() if recipe.learn_difficult else data
    if recipe.label_list is not None:
        if recipe.label_fraction != 1 or recipe.label_count is not None:
            raise UserError("label_list: names the images; leave out label_fraction and label_count")
        rows = listed_rows(data, Path(recipe.label_list))
    else:
        share = recipe.label_fraction, recipe.label_count
        rows = chosen_rows(data, recipe.label_choice, *share, recipe.label_seed)
    chosen = data.subset(rows)
    if not any(image.class_map or (~image.crowd).any() for image in chosen.images):
        key = "label_list" if recipe.label_list is not None else f"label_seed: {recipe.label_seed}"
        raise UserError(f"{key} chooses {len(rows)} images without any object; use other or more labels")
    return chosen


def _as_one(where: str | list[str]) -> str:
    return where if isinstance(where, str) else "+".join(where)


def _report(data: LabelledData, quiet: bool) -> None:
    if data.problems and not quiet:
        print(problem_report(data.problems), file=sys.stderr, flush=True)
