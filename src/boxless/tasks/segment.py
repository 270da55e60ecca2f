"""Semantic segmentation in a run: what FCN learns from, is measured with and finds in images."""

from collections.abc import Iterator

import numpy as np
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from boxless.data.annotations.types import LabelledData
from boxless.data.detection import DetectionSample
from boxless.data.index import ImageIndex
from boxless.data.segmentation import SegmentationDataset
from boxless.evaluation.inference import segment
from boxless.evaluation.mean_iou import SegmentationScores, confusion, mean_iou
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import SourceImages, workers_for
from boxless.training.device import make_fabric


def measure_classes(
    fabric: Fabric, detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe, workers: int
) -> tuple[dict[str, SegmentationScores], dict[str, str]]:
    """mIoU over all images, in source pixels, and the images that could not be read, which count nowhere."""
    dataset = SegmentationDataset(data, recipe.min_size, recipe.max_size, None)
    count = len(data.classes)
    counts = np.zeros((count, count), np.int64)
    skipped: dict[str, str] = {}
    for sample, found in segment(fabric, detector, dataset, recipe.detector.fcn.align_corners, workers=workers):
        if sample.skipped is not None:
            skipped.update([sample.skipped])
        else:
            counts += confusion(sample.target["classes"].numpy(), found, count)
    return {"segments": mean_iou(counts, data.classes)}, skipped


def measure_labelled(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe
) -> tuple[dict[str, SegmentationScores], dict[str, str]]:
    """As `measure_classes`, on whatever device there is."""
    fabric = make_fabric(recipe.precision)
    return measure_classes(fabric, detector.to(fabric.device), data, recipe, workers_for(recipe, len(data)))


def segment_labelled(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """The class map (H, W) of each labelled image, source px; that of its labels is in the sample's target."""
    fabric = make_fabric(recipe.precision)
    dataset = SegmentationDataset(data, recipe.min_size, recipe.max_size, None)
    yield from segment(fabric, detector.to(fabric.device), dataset, recipe.detector.fcn.align_corners)


def segment_images(
    detector: nn.Module, index: ImageIndex, recipe: FinetuneRecipe
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """The class map (H, W) of each image, source px; a sample's `skipped` tells that it is unreadable."""
    fabric = make_fabric(recipe.precision)
    dataset = SourceImages(index, recipe.min_size[-1:], recipe.max_size)
    workers = workers_for(recipe, len(index))
    yield from segment(fabric, detector.to(fabric.device), dataset, recipe.detector.fcn.align_corners, workers=workers)
