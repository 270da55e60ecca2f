"""Labels as a run takes them: read, reported on, and a part of them chosen."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boxless.data.annotations.class_maps import read_segmentation
from boxless.data.annotations.read import LabelledData, problem_report, read_labels
from boxless.data.annotations.select import chosen_rows, listed_rows
from boxless.data.annotations.shots import draw_shots, objects_per_class
from boxless.data.annotations.types import check_losses
from boxless.data.images import dark_report
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
    """Labels to measure against, in the classes that were learned.

    Raises:
        UserError: none of these classes has an object in them.
    """
    if segments:
        data = read_segmentation(_as_one(where), "val", classes=classes)
    else:
        data = read_labels(where, "val", classes=classes)
    _report(data, quiet)
    if not segments:
        _check_classes(data, where, quiet)
    return data


def choose_labels(data: LabelledData, recipe: FinetuneRecipe) -> LabelledData:
    """The images to learn from: those of label_list, those with `shots` boxes of each class, else by label_choice.

    Raises:
        UserError: if more is asked for than there is, or in two ways at once.
    """
    data = data.with_difficult() if recipe.learn_difficult else data
    shared = recipe.label_fraction != 1 or recipe.label_count is not None
    if recipe.label_fraction != 1 and recipe.label_count is not None:
        raise UserError(
            f"label_count: {recipe.label_count}; and label_fraction {recipe.label_fraction:g} both choose images; "
            "leave one out"
        )
    if recipe.shots is not None:
        if shared or recipe.label_list is not None or recipe.label_choice != "random":
            raise UserError(
                f"shots: {recipe.shots}; chooses boxes by class: leave out label_fraction, label_count, label_list and "
                "label_choice"
            )
        if recipe.detector.targets == "classes":
            raise UserError(f"shots: {recipe.shots}; counts boxes, and detector.kind=fcn learns pixels: leave it out")
        return draw_shots(data, recipe.shots, recipe.label_seed, recipe.detector.ignores)
    if recipe.label_list is not None:
        if shared:
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


def shots_in_words(chosen: LabelledData, recipe: FinetuneRecipe) -> str:
    """Number of boxes of each class in a draw, for the terminal."""
    counts = objects_per_class(chosen)
    text = f"shots {recipe.shots}: {listed([f'{name} {count}' for name, count in counts.items()])} boxes"
    if few := [name for name, count in counts.items() if count < (recipe.shots or 0)]:
        text += f", all there are of {listed(few)}"
    return f"{text}; other objects in their images are {'ignored' if recipe.detector.ignores else 'background'}"


def missing_classes(chosen: LabelledData, val: LabelledData) -> list[str]:
    """Classes that AP counts, because the validation set shows them, and that the chosen labels do not."""
    counted = objects_per_class(val)
    return [name for name, count in objects_per_class(chosen).items() if not count and counted.get(name)]


def missing_in_words(chosen: LabelledData, data: LabelledData, missing: list[str]) -> str:
    """Say which classes cannot be learned, and in how many images of all they are."""
    shown = Counter(int(label) for image in data.images for label in np.unique(image.labels[image.learned]))
    words = [f"{name} (in {shown[data.classes.index(name)]} of all {len(data)})" for name in missing]
    return f"none of the {len(chosen)} chosen images shows {listed(words)}; AP counts what cannot be learned as 0"


def _check_classes(val: LabelledData, where: str | list[str], quiet: bool) -> None:
    """Refuse labels without any object of the learned classes; name those that are spelled differently."""
    found = any(image.learned.any() for image in val.images)
    if found and not any(problem.message.startswith("class is not among") for problem in val.problems):
        return
    own = read_labels(where, "val")
    near = _near_misses(own.classes, val.classes)
    if found:
        if near and not quiet:
            print(f"{_as_one(where)}: {near}, or AP leaves them out", file=sys.stderr, flush=True)
        return
    if not any(image.learned.any() for image in own.images):
        raise UserError(f"{_as_one(where)}: no object is labelled in its {len(own)} images, so there is no AP")
    raise UserError(
        f"{_as_one(where)}: no object of the detector's classes ({listed(val.classes)}); its own classes are "
        f"{listed(own.classes)}; {near or 'names must match exactly'}"
    )


def _near_misses(names: Sequence[str], classes: Sequence[str]) -> str:
    """Pairs of names that differ in case, spaces, hyphens or underlines alone."""
    plain = {_plain(name): name for name in classes}
    pairs = [f"{name} / {plain[_plain(name)]}" for name in names if name not in classes and _plain(name) in plain]
    return f"nearly alike: {listed(pairs)}; spell them alike" if pairs else ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _as_one(where: str | list[str]) -> str:
    return where if isinstance(where, str) else "+".join(where)


def _report(data: LabelledData, quiet: bool) -> None:
    """Say what is wrong with labels; raises `UserError` if that is too much."""
    if data.problems and not quiet:
        print(problem_report(data.problems), file=sys.stderr, flush=True)
    check_losses(data)
    if not quiet and (line := dark_report([image.path for image in data.images])):
        print(line, file=sys.stderr, flush=True)
