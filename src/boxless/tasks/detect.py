"""Using a fine-tuned run: its detector, and what it finds in labelled images or in any images."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import Dataset

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.types import LabelledData, mask_area
from boxless.data.detection import DetectionDataset, DetectionSample, resize
from boxless.data.images import EXTENSIONS, BadImage, decode
from boxless.data.index import ImageIndex, index_images
from boxless.data.segmentation import sides
from boxless.detectors.build import build_detector, keep_above
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, Scores, average_precision, visible_keypoints
from boxless.evaluation.inference import as_list, detect
from boxless.evaluation.voc_precision import voc_average_precision
from boxless.files import PARTIAL, to_disk
from boxless.interop.files import read_tensors
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.run import Run
from boxless.training.device import make_fabric, worker_count


def open_run(where: str | Path) -> tuple[Run, PretrainRecipe | FinetuneRecipe]:
    """A run that has weights, and the recipe that says what they are of.

    Raises:
        UserError: where there is no run, or one that did not come to its weights.
    """
    run = Run(Path(where))
    if not run.recipe_file.is_file():
        kind = "is not a run (no recipe.yaml in it)" if run.path.is_dir() else "no such folder"
        raise UserError(f"run {where}: {kind}; name the folder that boxless pretrain or finetune wrote")
    recipe = load(run.recipe_file, object)
    if not isinstance(recipe, PretrainRecipe | FinetuneRecipe):
        raise UserError(f"run {where}: has a {type(recipe).__name__}, no weights; name a run of pretrain or finetune")
    if not run.weights.is_file():
        raise UserError(f"run {where}: did not finish (no weights.safetensors); give its command again to continue it")
    return run, recipe


def load_detector(where: str | Path) -> tuple[nn.Module, tuple[str, ...], FinetuneRecipe]:
    """The detector of a fine-tuned run, ready to detect, on the CPU; its classes; its recipe.

    Raises:
        UserError: where it is no fine-tuned run, or its files do not belong together.
    """
    run, recipe = open_run(where)
    if isinstance(recipe, PretrainRecipe):
        raise UserError(
            f"run {where}: is a pretraining run, which has no detector yet; "
            f"make one with boxless finetune --weights {where}, or measure it with boxless compare"
        )
    classes = _classes(run.path / "labels.json")
    keypoints = len(skeleton_of(run.path).names)
    detector = build_detector(Trunk(recipe.trunk), len(classes), recipe.detector, keypoints)
    try:
        detector.load_state_dict(read_tensors(run.weights))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        raise UserError(
            f"{run.weights}: not the weights of the recipe.yaml and labels.json beside it ({''.join(first).strip()})"
        ) from error
    return detector.eval(), classes, recipe


def _classes(path: Path) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in json.loads(path.read_text())["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected the run's list of classes; copy it from the run's original folder"
        ) from error


def skeleton_of(run: str | Path) -> Skeleton:
    """The keypoints that a fine-tuned run has learned; none where its detector is not one of keypoints."""
    saved = json.loads((Path(run) / "labels.json").read_text()).get("skeleton", {})
    edges = [(int(first), int(second)) for first, second in saved.get("edges", ())]
    return Skeleton(tuple(saved.get("names", ())), tuple(edges))


def check_keypoints(data: LabelledData, learned: Skeleton, recipe: FinetuneRecipe) -> None:
    """See to it that the labels' keypoints, if any, are those that were learned.

    Raises:
        UserError: where a detector of keypoints is measured with others.
    """
    theirs = data.skeleton.names
    if recipe.detector.kind == "keypoint_rcnn" and theirs and theirs != learned.names:
        raise UserError(
            f"{data.origin}: its keypoints ({', '.join(theirs[:5])}, ...) are not the detector's "
            f"({', '.join(learned.names[:5])}, ...); their names must agree, in the same order"
        )


def detect_labelled(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe
) -> tuple[list[Detections], dict[str, str]]:
    """Detections of every labelled image, in their order, and the images that could not be read."""
    fabric = make_fabric(recipe.precision)
    dataset = DetectionDataset(data, recipe.min_size, recipe.max_size, training=False, masks=False)
    workers = workers_for(recipe, len(dataset))
    return as_list(detect(fabric, detector.to(fabric.device), dataset, workers=workers))


def scores(data: LabelledData, found: Sequence[Detections], recipe: FinetuneRecipe) -> dict[str, Scores]:
    """AP of boxes and, where detector and labels have them, of masks or keypoints; that of the recipe's metric first.

    With metric voc07 VOC 2007's AP stands beside COCO's; with lvis all is LVIS's: COCO's would count as wrong what
    LVIS's labels say nothing of.
    """
    federated = recipe.metric == "lvis"
    result = {"voc07": voc_average_precision(data, found)} if recipe.metric == "voc07" else {}
    result["bbox"] = average_precision(data, found, federated=federated)
    if recipe.detector.kind == "mask_rcnn" and data.has_masks:
        result["segm"] = average_precision(data, found, "segm", federated)
    if recipe.detector.kind == "keypoint_rcnn" and data.has_keypoints:
        result["keypoints"] = average_precision(data, found, "keypoints")
    return result


def find_images(where: str | Sequence[str]) -> ImageIndex:
    """Images as `index_images` finds them, or single image files.

    Raises:
        UserError: where there are none, or files and folders are mixed.
    """
    places = [where] if isinstance(where, str) else list(where)
    files = [place for place in places if place.lower().endswith(EXTENSIONS) and Path(place).is_file()]
    if not files:
        return index_images(where)
    if len(files) < len(places):
        other = next(place for place in places if place not in files)
        raise UserError(f"data: {other} is no image file, {files[0]} is one; give folders or files, not both")
    paths = sorted({os.path.abspath(file) for file in files})
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    keys = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return ImageIndex({"": root}, pa.array(keys, type=pa.large_string()))


class SourceImages(Dataset[DetectionSample]):
    """Images without labels as a detector takes them.

    Args:
        index: the images.
        shorter: shorter side, px; empty where images keep their size.
        longest: longest side, px.
    """

    def __init__(self, index: ImageIndex, shorter: Sequence[int], longest: int) -> None:
        self.index, self.shorter, self.longest = index, shorter, longest

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> DetectionSample:
        path = self.index.path(row)
        try:
            source = decode(path)
        except BadImage as error:
            grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
            return DetectionSample(grey, torch.eye(2, 3), {}, row, (32, 32), (path, error.reason))
        size = (source.shape[1], source.shape[0])
        image, from_source = resize(source, *sides(size, self.shorter, self.longest))
        return DetectionSample(image, from_source, {}, row, size)


def detect_images(
    detector: nn.Module, index: ImageIndex, recipe: FinetuneRecipe, score: float
) -> Iterator[tuple[DetectionSample, Detections]]:
    """What is found in each image with more than `score` (0..1); a sample's `skipped` tells that it is unreadable."""
    fabric = make_fabric(recipe.precision)
    # Before NMS and masks and not after them: the same result, since boxes are only ever suppressed by surer ones.
    keep_above(detector, score)
    dataset = SourceImages(index, recipe.min_size[-1:], recipe.max_size)
    yield from detect(fabric, detector.to(fabric.device), dataset, workers=workers_for(recipe, len(index)))


def workers_for(recipe: FinetuneRecipe, images: int) -> int:
    """Processes that decode a number of images."""
    return min(worker_count(recipe.workers, 8), images // 8)  # starting a process costs more than a few images


WRITTEN = {"description": "boxless predict"}
"""COCO's info of a file of predictions: others too call theirs predictions.json."""


class PredictionFile:
    """A COCO dict of predictions, written while they come, so that its size does not matter; complete after `finish`.

    Args:
        path: of the JSON file.
        classes: names; the category id of class k is k + 1.
        skeleton: of the objects' keypoints.
    """

    def __init__(self, path: Path, classes: Sequence[str], skeleton: Skeleton) -> None:
        self.path, self.images, self.objects = path, 0, 0
        names = (f"{path.name}{PARTIAL}", f"{path.name}.objects{PARTIAL}")
        self._partial, self._rest = (path.with_name(name) for name in names)
        self._image_file, self._object_file = self._partial.open("w"), self._rest.open("w")
        categories = [
            {"id": number, "name": name, **skeleton.as_coco()} for number, name in enumerate(classes, start=1)
        ]
        self._image_file.write(
            f'{{"info": {json.dumps(WRITTEN)},\n"categories": {json.dumps(categories)},\n"images": ['
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._image_file.close()
        self._object_file.close()

    def add(self, file: str, size: tuple[int, int], found: Detections) -> None:
        """Add an image, its size (W, H) in px and what was found in it."""
        self.images += 1
        image = {"id": self.images, "file_name": PurePosixPath(file).as_posix(), "width": size[0], "height": size[1]}
        self._image_file.write((",\n" if self.images > 1 else "\n") + json.dumps(image))
        for row in range(len(found.boxes)):
            self.objects += 1
            annotation = {"id": self.objects, "image_id": self.images, **_annotation(found, row)}
            self._object_file.write((",\n" if self.objects > 1 else "\n") + json.dumps(annotation))

    def finish(self, skipped: dict[str, str]) -> None:
        """Put the parts together; `skipped` (file -> reason) becomes a list of its own."""
        self._object_file.close()
        with self._image_file as file, self._rest.open() as rest:
            file.write('],\n"annotations": [')
            shutil.copyfileobj(rest, file)
            listed = [{"file_name": name, "reason": reason} for name, reason in skipped.items()]
            file.write(f'],\n"skipped": {json.dumps(listed, indent=1)}}}\n')
        to_disk(self._partial)
        self._partial.replace(self.path)
        to_disk(self.path.parent)
        self._rest.unlink()


def _annotation(found: Detections, row: int) -> dict[str, Any]:
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
