"""`boxless predict`."""

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from boxless.data.index import ImageIndex
    from boxless.recipes.schema import FinetuneRecipe

FILE = "predictions.json"
DRAWN = {"images": ".jpg", "class_maps": ".png"}
"""Folders of what is drawn, and in what form."""
JPEG_LIMIT = 65_500  # px a side; the format holds no more


@dataclass(frozen=True)
class PredictResult:
    """What `predict` found.

    Attributes:
        path: the file of predictions.
        images: images that were looked at.
        objects: found in all of them; None of FCN, which finds classes of pixels.
        skipped: file -> reason of the images that could not be read.
    """

    path: Path
    images: int
    objects: int | None
    skipped: dict[str, str]

    def __str__(self) -> str:
        found = "class maps of" if self.objects is None else f"{self.objects} objects in"
        lines = [f"{self.path}: {found} {self.images} images; drawn in {self.path.parent / 'images'}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} images could not be read:")
            lines += [f"  {file}: {reason}" for file, reason in list(self.skipped.items())[:20]]
        if len(self.skipped) > 20:
            lines.append(f"  and {len(self.skipped) - 20} more, under `skipped` in the file")
        return "\n".join(lines)


def predict(run: str, data: str | list[str], out: str, score: float = 0.5, quiet: bool = False) -> PredictResult:
    """Find objects in images with a fine-tuned detector, or the class of every pixel with FCN.

    Writes predictions.json, a COCO dict with a score for each object that can be read back as labels, and every image
    with its objects drawn, in images/. Images that cannot be read are listed and left out. Of FCN, predictions.json
    names the classes, and class_maps/ has a PNG file for each image whose values are their numbers from 0.

    Args:
        run: Folder that boxless finetune wrote.
        data: Images: files, folders with all folders below them, a list file, a labelled data set (without its
            labels).
        out: Folder for the results; a new or empty one, or one that predict wrote, whose results are replaced.
        score: Least score of an object, 0..1; FCN ignores it.
        quiet: Print nothing.

    Returns:
        How many objects were found, and where they are written.

    Raises:
        UserError: For anything that the caller can mend.
    """
    from boxless.data.images import decode
    from boxless.errors import UserError
    from boxless.plots.overlay import overlay
    from boxless.tasks.detect import PredictionFile, detect_images, find_images, load_detector, skeleton_of

    if not 0 <= score <= 1:
        raise UserError(f"score: {score}; expected 0 to 1")
    detector, classes, recipe = load_detector(run)
    folder = _folder(out, data)
    index = find_images(data)
    _begin(folder, index)
    if recipe.detector.kind == "fcn":
        result = _predict_classes(detector, classes, recipe, index, folder, quiet)
        if not quiet:
            print(result)
        return result
    skipped: dict[str, str] = {}
    report = _Report(len(index), quiet)
    skeleton = skeleton_of(run)
    with PredictionFile(folder / FILE, classes, skeleton) as predictions:
        for sample, found in detect_images(detector, index, recipe, score):
            report.advance()
            path = index.path(sample.row)
            if sample.skipped is not None:
                skipped[path] = sample.skipped[1]
                continue
            predictions.add(path, sample.source_size, found)
            if max(sample.source_size) <= JPEG_LIMIT:
                # decoded once more: carrying all sources along from the workers costs more memory than this costs time
                drawn = overlay(decode(path), found, classes, skeleton.edges)
                _save(drawn, _target(folder, index.key(sample.row), "images"))
        predictions.finish(skipped)
    result = PredictResult(folder / FILE, predictions.images, predictions.objects, skipped)
    if not quiet:
        print(result)
    return result


def _predict_classes(
    detector: "nn.Module",
    classes: tuple[str, ...],
    recipe: "FinetuneRecipe",
    index: "ImageIndex",
    folder: Path,
    quiet: bool,
) -> PredictResult:
    """As `predict`, of FCN."""
    from boxless.data.images import decode
    from boxless.plots.class_maps import class_overlay, class_png
    from boxless.runs.run import write_json
    from boxless.tasks.detect import WRITTEN
    from boxless.tasks.segment import segment_images

    skipped: dict[str, str] = {}
    images = []
    report = _Report(len(index), quiet)
    for sample, found in segment_images(detector, index, recipe):
        report.advance()
        path = index.path(sample.row)
        if sample.skipped is not None:
            skipped[path] = sample.skipped[1]
            continue
        target = _target(folder, index.key(sample.row), "class_maps")
        _save(class_png(found), target, "PNG")
        width, height = sample.source_size
        place = target.relative_to(folder).as_posix()
        images.append({"file_name": path, "width": width, "height": height, "class_map": place})
        if max(sample.source_size) <= JPEG_LIMIT:
            drawn = class_overlay(decode(path), found, classes)
            _save(drawn, _target(folder, index.key(sample.row), "images"))
    listed = [{"file_name": name, "reason": reason} for name, reason in skipped.items()]
    write_json(folder / FILE, {"info": WRITTEN, "classes": classes, "images": images, "skipped": listed})
    return PredictResult(folder / FILE, len(images), None, skipped)


def _folder(out: str, data: str | list[str]) -> Path:
    """The folder for the results: nothing in it, and none of the images that are looked at, can be overwritten."""
    from boxless.errors import UserError
    from boxless.runs.run import check_results
    from boxless.tasks.detect import WRITTEN

    folder = Path(out)
    check_results(folder, FILE)
    if (folder / FILE).is_file():
        with (folder / FILE).open("rb") as file:
            if WRITTEN["description"].encode() not in file.read(100):
                raise UserError(f"out {out}: its {FILE} is not of boxless predict; name a new or an empty folder")
    for place in [data] if isinstance(data, str) else data:
        if Path(place).is_dir() and folder.resolve().is_relative_to(Path(place).resolve()):
            raise UserError(f"out {out}: lies inside {place}, whose images are looked at; name a folder outside it")
    return folder


def _begin(folder: Path, index: "ImageIndex") -> None:
    """Make the folder, without an earlier run's results: its pictures would be taken for those of this one."""
    from boxless.errors import UserError
    from boxless.runs.run import begin_results

    rooms = [(folder / room).resolve() for room in DRAWN if (folder / room).exists()]
    for row in range(len(index) if rooms else 0):
        path = index.path(row)
        if any(Path(path).resolve().is_relative_to(room) for room in rooms):
            raise UserError(f"out {folder}: its drawn images would overwrite {path}; name another folder")
    begin_results(folder, FILE)
    (folder / FILE).unlink(missing_ok=True)
    for room, suffix in DRAWN.items():
        for place, _, names in os.walk(folder / room, topdown=False):
            for name in names:
                if name.lower().endswith(suffix):  # labels that were drawn there by hand stay
                    Path(place, name).unlink()
            with suppress(OSError):
                Path(place).rmdir()


def _target(folder: Path, key: str, room: str) -> Path:
    """A new file for what is drawn of an image: the key's parts below `folder`, whatever leads out of it dropped."""
    parts = [part for part in Path(key).parts if part not in ("..", Path(key).anchor)]
    path, suffix = folder.joinpath(room, *parts), DRAWN[room]
    path = path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    # a.png and a.png.jpg, or ../a/1.jpg and a/1.jpg of a list, would be one file
    return next(file for file in chain([path], others) if not file.exists())


def _save(image: "Image", path: Path, form: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    image.save(partial, format=form, quality=92)
    partial.replace(path)  # thousands of pictures that can be drawn again: none waits for the disk


class _Report:
    """A line on stderr every ten seconds."""

    def __init__(self, total: int, quiet: bool) -> None:
        import time

        self.total, self.quiet, self.done = total, quiet, 0
        self.clock = time.monotonic
        self.began = self.last = self.clock()

    def advance(self) -> None:
        import sys

        self.done += 1
        now = self.clock()
        if not self.quiet and now - self.last >= 10:
            self.last = now
            rate = self.done / (now - self.began)
            print(f"predict: {self.done} of {self.total} images, {rate:.1f} images/s", file=sys.stderr, flush=True)
