"""What a fine-tuned detector scores, as numbers and as a table."""

from collections.abc import Mapping
from pathlib import Path

from lightning.fabric import Fabric
from torch import nn

from boxless.data.annotations.read import LabelledData
from boxless.data.detection import DetectionDataset
from boxless.evaluation.average_precision import Scores
from boxless.evaluation.inference import as_list, detect
from boxless.evaluation.mean_iou import SegmentationScores
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import scores as scores_of
from boxless.tasks.gallery import write_gallery
from boxless.tasks.segment import measure_classes


def evaluate_detector(
    fabric: Fabric,
    detector: nn.Module,
    val: LabelledData,
    recipe: FinetuneRecipe,
    workers: int,
    gallery: Path | None = None,
) -> tuple[Mapping[str, Scores | SegmentationScores], dict[str, str]]:
    """AP as `detecting.scores` has it, or FCN's mIoU, and the images that could not be read.

    `gallery`: a folder to leave what was found in, for a page; FCN's is left out.
    """
    if recipe.detector.kind == "fcn":
        return measure_classes(fabric, detector, val, recipe, workers)
    dataset = DetectionDataset(val, recipe.min_size, recipe.max_size, training=False, masks=False)
    found, skipped = as_list(detect(fabric, detector, dataset, workers=workers))
    if gallery is not None:
        write_gallery(gallery, val, found, skipped)
    return scores_of(val, found, recipe), skipped


def score_table(scores: Mapping[str, Scores | SegmentationScores]) -> str:
    """AP or mIoU in percent, a line per kind, and by class."""
    lines, names = [], {"bbox": "boxes", "segm": "masks", "voc07": "boxes, VOC 2007's 11 points"}
    for kind, result in scores.items():
        values = "  ".join(f"{key} {100 * value:.1f}" for key, value in known(result.as_dict()).items())
        lines.append(f"{names.get(kind, kind)}: {values}")
    by_class = next(iter(scores.values())).per_class
    if 1 < len(by_class) <= 30:
        name = "IoU" if "segments" in scores else "AP"
        lines.append(f"{name} by class: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in by_class.items()))
    return "\n".join(lines)


def known(values: Mapping[str, float]) -> dict[str, float]:
    """The numbers without those that the labels give no ground for, or that a metric does not have."""
    return {name: value for name, value in values.items() if value == value}
