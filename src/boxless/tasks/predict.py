"""Predict: find objects or class maps in images with a fine-tuned run, write them down, and draw them."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Self

from PIL.Image import Image
from torch import nn

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.types import mask_area
from boxless.data.images import decode, skipped_report
from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, visible_keypoints
from boxless.files import PARTIAL, to_disk
from boxless.plots.class_maps import class_overlay, class_png
from boxless.plots.overlay import overlay
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import begin_results, check_results, write_json
from boxless.tasks.detect import detect_images, find_images, load_detector, segment_images, skeleton_of
from boxless.training.progress import progress

FILE = "predictions.json"
WRITER = {"description": "boxless predict"}
"""COCO's `info` in FILE: others, too, call theirs predictions.json."""
DRAWN = {"images": ".jpg", "class_maps": ".png"}
"""Folders of drawn images, and their format."""
JPEG_LIMIT = 65_500  # px a side; the format holds no more


@dataclass(frozen=True)
class PredictResult:
    """Predictions, written to a file.

    Attributes:
        path: the file.
        images: images that could be read.
        objects: found in all of them; None for FCN, which finds classes of pixels.
        skipped: file -> reason of the images that could not be read.
    """

    path: Path
    images: int
    objects: int | None
    skipped: dict[str, str]

    def __str__(self) -> str:
        found = "class maps of" if self.objects is None else f"{self.objects} objects in"
        text = f"{self.path}: {found} {self.images} images; drawn in {self.path.parent / 'images'}"
        if not self.skipped:
            return text
        return f"{text}\n{skipped_report(self.skipped, 'images could not be read', ', under `skipped` in the file')}"


def run_prediction(run: str, data: str | list[str], out: str, score: float, quiet: bool) -> PredictResult:
    """Predict with a run's detector; see `boxless.predict`."""
    check_score(score, "score")
    detector, classes, recipe = load_detector(run)
    folder = _folder(out, data)
    index = find_images(data)
    _begin(folder, index)
    if recipe.detector.targets == "classes":
        return _predict_classes(detector, classes, recipe, index, folder, quiet)
    skipped: dict[str, str] = {}
    skeleton = skeleton_of(run)
    done = progress(len(index), quiet, "predict")
    with PredictionFile(folder / FILE, classes, skeleton) as predictions, done as advance:
        for sample, found in detect_images(detector, index, recipe, score):
            advance(1)
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
    return PredictResult(folder / FILE, len(predictions.images), predictions.objects, skipped)


def check_score(score: float, name: str) -> None:
    """Raise UserError if a score, an argument of that name, is not in 0..1."""
    if not 0 <= score <= 1:
        raise UserError(f"{name}: {score}; expected 0 to 1")


def _predict_classes(
    detector: nn.Module,
    classes: tuple[str, ...],
    recipe: FinetuneRecipe,
    index: ImageIndex,
    folder: Path,
    quiet: bool,
) -> PredictResult:
    skipped: dict[str, str] = {}
    images = []
    with progress(len(index), quiet, "predict") as advance:
        for sample, found in segment_images(detector, index, recipe):
            advance(1)
            path = index.path(sample.row)
            if sample.skipped is not None:
                skipped[path] = sample.skipped[1]
                continue
            target = _target(folder, index.key(sample.row), "class_maps")
            _save(class_png(found), target, "PNG")
            images.append({**_image(path, sample.source_size), "class_map": target.relative_to(folder).as_posix()})
            if max(sample.source_size) <= JPEG_LIMIT:
                drawn = class_overlay(decode(path), found, classes)
                _save(drawn, _target(folder, index.key(sample.row), "images"))
    content = {"info": WRITER, "classes": classes, "images": images, "skipped": _listed(skipped)}
    write_json(folder / FILE, content)
    return PredictResult(folder / FILE, len(images), None, skipped)


class PredictionFile:
    """A COCO dict of predictions whose objects are written while they come; complete after `finish`.

    Args:
        path: the JSON file.
        classes: names; the category id of class k is k + 1.
        skeleton: the objects' keypoints.
    """

    def __init__(self, path: Path, classes: Sequence[str], skeleton: Skeleton) -> None:
        self.path, self.partial, self.objects = path, path.with_name(path.name + PARTIAL), 0
        self.images: list[str] = []
        categories = [{"id": k, "name": name, **skeleton.as_coco()} for k, name in enumerate(classes, start=1)]
        self._file = self.partial.open("w")
        self._file.write(f'{{"info": {json.dumps(WRITER)},\n"categories": {json.dumps(categories)},\n"annotations": [')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Add an image, its size (W, H) in px and the detections in it."""
        number = len(self.images) + 1
        self.images.append(json.dumps({"id": number, **_image(file, size)}))
        for row in range(len(found.boxes)):
            self.objects += 1
            annotation = {"id": self.objects, "image_id": number, **as_coco(found, row)}
            self._file.write((",\n" if self.objects > 1 else "\n") + json.dumps(annotation))

    def finish(self, skipped: dict[str, str]) -> None:
        """Add the images, and those that could not be read (file -> reason) as a list of their own."""
        self._file.write('],\n"images": [\n' + ",\n".join(self.images))
        self._file.write(f'],\n"skipped": {json.dumps(_listed(skipped), indent=1)}}}\n')
        self._file.close()
        to_disk(self.partial)
        self.partial.replace(self.path)
        to_disk(self.path.parent)


def as_coco(found: Detections, row: int) -> dict[str, Any]:
    """A detection as a COCO annotation without ids; the category of class k is k + 1."""
    x1, y1, x2, y2 = found.boxes[row].astype(float).tolist()
    annotation = {
        "category_id": int(found.labels[row]) + 1,
        "score": float(found.scores[row]),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }
    if found.keypoints is not None:
        annotation |= visible_keypoints(found.keypoints[row])
    if found.masks is None:
        return annotation
    return annotation | {"area": mask_area(found.masks[row]), "segmentation": found.masks[row]}


def _image(file: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"file_name": PurePosixPath(file).as_posix(), "width": size[0], "height": size[1]}


def _listed(skipped: dict[str, str]) -> list[dict[str, str]]:
    return [{"file_name": name, "reason": reason} for name, reason in skipped.items()]


def _folder(out: str, data: str | list[str]) -> Path:
    """The folder for the results, checked: nothing in it and none of the images can be overwritten."""
    folder = Path(out)
    check_results(folder, FILE)
    if (folder / FILE).is_file():
        with (folder / FILE).open("rb") as file:
            if WRITER["description"].encode() not in file.read(100):
                raise UserError(f"out {out}: its {FILE} is not of boxless predict; name a new or an empty folder")
    for place in [data] if isinstance(data, str) else data:
        if Path(place).is_dir() and folder.resolve().is_relative_to(Path(place).resolve()):
            raise UserError(f"out {out}: lies inside {place}, whose images are looked at; name a folder outside it")
    return folder


def _begin(folder: Path, index: ImageIndex) -> None:
    """Make the folder, without an earlier run's results: its pictures would be taken for those of this one."""
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


def _save(image: Image, path: Path, form: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    image.save(partial, format=form, quality=92)
    partial.replace(path)  # thousands of pictures that can be drawn again: none waits for the disk
