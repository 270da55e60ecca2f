"""Evaluate a detector on labels: AP of boxes, masks and keypoints, or FCN's mIoU, as numbers, files and pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from torch import nn

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.read import LabelledData
from boxless.data.detection import decode_labelled
from boxless.data.images import decode, skipped_report
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, Scores, average_precision, coco_results, verified
from boxless.evaluation.matching import balanced_score
from boxless.evaluation.mean_iou import SegmentationScores, confusion, mean_iou
from boxless.evaluation.voc_precision import voc_average_precision
from boxless.files import make_folder, write_text
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import begin_results, check_results, write_json
from boxless.tasks.detect import detect_labelled, load_detector, segment_labelled, skeleton_of
from boxless.tasks.gallery import write_gallery
from boxless.tasks.labels import listed, validation_labels

AnyScores = Mapping[str, Scores | SegmentationScores]
"""Scores by what they are of: bbox, segm, keypoints, voc07, or FCN's segments; the recipe's metric first."""

FILE = "evaluation.json"
EXAMPLES = 6


def evaluate_detector(
    detector: nn.Module,
    val: LabelledData,
    recipe: FinetuneRecipe,
    fabric: Fabric | None = None,
    gallery: Path | None = None,
) -> tuple[AnyScores, dict[str, str]]:
    """Scores on labelled images, and the images that could not be read: file -> reason.

    `gallery`: a folder for the report's images with detections; FCN has none.
    """
    if recipe.detector.targets == "classes":
        return segmentation_scores(detector, val, recipe, fabric)
    found, skipped = detect_labelled(detector, val, recipe, fabric)
    if gallery is not None:
        write_gallery(gallery, val, found, skipped)
    return detection_scores(val, found, recipe), skipped


def detection_scores(data: LabelledData, found: Sequence[Detections], recipe: FinetuneRecipe) -> dict[str, Scores]:
    """AP of boxes and, if detector and labels have them, of masks or keypoints; that of the recipe's metric first.

    With metric voc07 VOC 2007's AP stands beside COCO's; with lvis all is LVIS's: COCO's would count as wrong what
    LVIS's labels say nothing of.
    """
    federated = recipe.metric == "lvis"
    result = {"voc07": voc_average_precision(data, found)} if recipe.metric == "voc07" else {}
    result["bbox"] = average_precision(data, found, federated=federated)
    if recipe.detector.targets == "masks" and data.has_masks:
        result["segm"] = average_precision(data, found, "segm", federated)
    if recipe.detector.targets == "keypoints" and data.has_keypoints:
        result["keypoints"] = average_precision(data, found, "keypoints")
    return result


def segmentation_scores(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe, fabric: Fabric | None = None
) -> tuple[dict[str, SegmentationScores], dict[str, str]]:
    """mIoU over all images, in source pixels, and the images that could not be read, whose pixels do not count."""
    count = len(data.classes)
    counts = np.zeros((count, count), np.int64)
    skipped: dict[str, str] = {}
    for sample, found in segment_labelled(detector, data, recipe, fabric):
        if sample.skipped is not None:
            skipped.update([sample.skipped])
        else:
            counts += confusion(sample.target["classes"].numpy(), found, count)
    return {"segments": mean_iou(counts, data.classes)}, skipped


def check_keypoints(data: LabelledData, learned: Skeleton, recipe: FinetuneRecipe) -> None:
    """Check that the labels' keypoints, if any, are those that were learned.

    Raises:
        UserError: a keypoint detector is measured on other keypoints.
    """
    theirs = data.skeleton.names
    if recipe.detector.targets == "keypoints" and theirs and theirs != learned.names:
        raise UserError(
            f"{data.origin}: its keypoints ({', '.join(theirs[:5])}, ...) are not the detector's "
            f"({', '.join(learned.names[:5])}, ...); their names must agree, in the same order"
        )


def score_table(scores: AnyScores) -> str:
    """AP or mIoU in percent, a line per kind, and by class."""
    lines, names = [], {"bbox": "boxes", "segm": "masks", "voc07": "boxes, VOC 2007's 11 points"}
    for kind, result in scores.items():
        values = "  ".join(f"{key} {100 * value:.1f}" for key, value in known(result.as_dict()).items())
        lines.append(f"{names.get(kind, kind)}: {values}")
    by_class = next(iter(scores.values())).per_class
    if 1 < len(by_class) <= 30:
        name = "IoU" if "segments" in scores else "AP"
        lines.append(
            f"{name} by class: "
            + ", ".join(f"{k} {100 * v:.1f}" if v == v else f"{k} none" for k, v in by_class.items())
        )
    return "\n".join(lines)


def known(values: Mapping[str, float]) -> dict[str, float]:
    """The numbers that are not NaN, which stands for what the labels do not tell or a metric does not have."""
    return {name: value for name, value in values.items() if value == value}


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a detector on labels.

    Attributes:
        path: folder with evaluation.json, detections.json and examples.png.
        images: number of measured images.
        scores: scores of boxes ("bbox") and, if detector and labels have them, of masks ("segm") or "keypoints"; of FCN
            "segments".
        unlabelled: classes of the detector that the labels have no object of (of FCN: that neither labels nor
            predictions have); they are in no mean.
        skipped: file -> reason of the images that could not be read; their objects count as missed, their pixels not.
        report: the page that shows all of it; see boxless report.
    """

    path: Path
    images: int
    scores: AnyScores
    unlabelled: tuple[str, ...]
    skipped: dict[str, str]
    report: Path

    def __str__(self) -> str:
        lines = [f"{self.images} images, in percent:", score_table(self.scores)]
        if self.unlabelled:
            lines.append(f"without labelled objects, in no mean: {listed(self.unlabelled)}")
        if self.skipped:
            counted = "their pixels do not count" if "segments" in self.scores else "their objects count as missed"
            lines.append(skipped_report(self.skipped, f"images could not be read, {counted}", ", in evaluation.json"))
        return "\n".join([*lines, f"written to {self.path}", f"report: {self.report}"])

    def as_json(self) -> dict[str, Any]:
        """The result as evaluation.json has it."""
        return {
            "images": self.images,
            "scores": {kind: scores.as_dict() for kind, scores in self.scores.items()},
            "per_class": {kind: scores.per_class for kind, scores in self.scores.items()},
            "unlabelled": list(self.unlabelled),
            "skipped": self.skipped,
        }


def run_evaluation(run: str, data: str, out: str | None = None, quiet: bool = False) -> EvaluationResult:
    """Evaluate a run's detector, and write the scores, detections and pictures; see `boxless.evaluate`."""
    detector, classes, recipe = load_detector(run)
    segments = recipe.detector.targets == "classes"
    labels = validation_labels(data, classes, quiet, segments)
    if not segments:
        check_keypoints(labels, skeleton_of(run), recipe)
    folder = _folder(run, data, out)
    scores: AnyScores
    if segments:
        scores, skipped = segmentation_scores(detector, labels, recipe)
        absent = [name for name, share in scores["segments"].per_class.items() if share != share]
        begin_results(folder, FILE)
        _draw_class_maps(folder / "examples", detector, labels, recipe, skipped)
    else:
        found, skipped = detect_labelled(detector, labels, recipe)
        scores = detection_scores(labels, found, recipe)
        shown = {int(number) for image in labels.images for number in image.labels[~image.crowd]}
        absent = [name for number, name in enumerate(classes) if number not in shown]
        begin_results(folder, FILE)
        entries = coco_results(labels, found)
        write_text(folder / "detections.json", "[" + ",\n".join(map(json.dumps, entries)) + "]\n")
        _draw_detections(folder / "examples", labels, found, skipped)
        write_gallery(folder, labels, found, skipped)
    inside = folder.resolve().parent == Path(run).resolve() and folder.name.startswith("evaluation-")
    report = (Path(run) if inside else folder) / "report.html"
    result = EvaluationResult(folder, len(labels), scores, tuple(absent), skipped, report)
    write_json(folder / FILE, {**_inputs(run, data), **result.as_json()})
    return result


def _folder(run: str, data: str, out: str | None) -> Path:
    """The folder for the results, made before the measuring, which may take long; nothing else is overwritten."""
    path, inputs = Path(data), _inputs(run, data)
    name = path.stem if path.suffix in (".json", ".yaml", ".yml", ".txt") else path.resolve().name.replace(":", "-")
    folder = Path(out) if out is not None else Path(run) / f"evaluation-{name}"
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"out {folder}: is the folder of a run, which has a gallery.json of its own; name a new folder")
    check_results(folder, FILE)
    if (folder / FILE).is_file():
        try:
            earlier = dict(json.loads((folder / FILE).read_text()))
        except (ValueError, TypeError):
            earlier = {}
        moved = out is None  # a run's own folder holds evaluations of that run only, wherever it has been moved
        if earlier.get("data") != inputs["data"] or (earlier.get("run") != inputs["run"] and not moved):
            raise UserError(
                f"out {folder}: holds the evaluation of {earlier.get('run')} on {earlier.get('data')}; "
                "name another folder"
            )
    make_folder(folder)
    return folder


def _inputs(run: str, data: str) -> dict[str, str]:
    return {"run": str(Path(run).resolve()), "data": str(Path(data).resolve())}


def _draw_detections(path: Path, labels: LabelledData, found: Sequence[Detections], skipped: Mapping[str, str]) -> None:
    """A few images with objects, spread over the data; LVIS's without what its labels say nothing of."""
    from boxless.plots.detections import detection_pairs
    from boxless.plots.style import save

    found = verified(labels, found)
    rows = _spread([row for row in _readable(labels, skipped) if len(labels.images[row].boxes)])
    if rows:
        truths = [labels.images[row] for row in rows]
        images = [decode_labelled(truth) for truth in truths]
        threshold = min(0.5, balanced_score(labels, found))
        save(detection_pairs(images, truths, [found[row] for row in rows], labels.classes, threshold), path)


def _draw_class_maps(
    path: Path, detector: nn.Module, labels: LabelledData, recipe: FinetuneRecipe, skipped: Mapping[str, str]
) -> None:
    from boxless.plots.class_maps import class_pairs
    from boxless.plots.style import save

    data = labels.subset(_spread(_readable(labels, skipped)))
    shown = [each for each in segment_labelled(detector, data, recipe) if each[0].skipped is None]
    if shown:
        images = [decode(data.images[sample.row].path) for sample, _ in shown]
        truths, found = [sample.target["classes"].numpy() for sample, _ in shown], [each for _, each in shown]
        save(class_pairs(images, truths, found, labels.classes), path)


def _readable(labels: LabelledData, skipped: Mapping[str, str]) -> list[int]:
    return [row for row, image in enumerate(labels.images) if str(image.path) not in skipped]


def _spread(rows: list[int]) -> list[int]:
    """A few of the rows, from the first to the last."""
    return [rows[k] for k in np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)]
