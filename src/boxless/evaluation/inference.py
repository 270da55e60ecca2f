"""Running a detector over images: resized as in training, its boxes carried back to the source."""

from collections.abc import Iterator

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from boxless.data.dataloader import make_loader
from boxless.data.detection import DetectionSample
from boxless.evaluation.average_precision import Detections, masks_to_rle
from boxless.geometry.affine import invert, transform_points
from boxless.geometry.boxes import clip, transform_boxes


def detect(
    fabric: Fabric, detector: nn.Module, dataset: Dataset[DetectionSample], batch: int = 4, workers: int = 0
) -> Iterator[tuple[DetectionSample, Detections]]:
    """Detections of every image of a data set, in its order; the detector is left in the mode that it was in."""
    for sample, output in _outputs(fabric, detector, dataset, batch, workers):
        yield sample, to_source(output, sample)


def segment(
    fabric: Fabric,
    detector: nn.Module,
    dataset: Dataset[DetectionSample],
    align_corners: bool,
    batch: int = 4,
    workers: int = 0,
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """Class maps (H, W) of every image of a data set, source px, by FCN; see `detect`.

    The logits are enlarged to the source, not the classes, and by the head's own `align_corners`, as in OpenMMLab.
    """
    for sample, output in _outputs(fabric, detector, dataset, batch, workers):
        width, height = sample.source_size
        logits = interpolate(output["logits"][None], (height, width), mode="bilinear", align_corners=align_corners)
        # on a processor argmax takes twice as long as max
        yield sample, logits.max(1).indices[0].to(torch.uint8).cpu().numpy()


def _outputs(
    fabric: Fabric, detector: nn.Module, dataset: Dataset[DetectionSample], batch: int, workers: int
) -> Iterator[tuple[DetectionSample, dict[str, Tensor]]]:
    training = detector.training
    detector.eval()
    try:
        for samples in make_loader(dataset, batch, workers):
            images = [sample.image.to(fabric.device).float() / 255 for sample in samples]
            with torch.inference_mode(), fabric.autocast():
                outputs = detector(images)
            yield from zip(samples, outputs, strict=True)
    finally:
        detector.train(training)


def to_source(output: dict[str, Tensor], sample: DetectionSample) -> Detections:
    """A torchvision detector's output for one sample, in source pixels and 0-based classes."""
    width, height = sample.source_size
    back = invert(sample.from_source[None])
    boxes = clip(transform_boxes(back, output["boxes"].float().cpu()[None])[0], width, height)
    masks = None
    if "masks" in output:
        masks = _source_masks(output["masks"].float().cpu(), width, height)
    keypoints = None
    if "keypoints" in output:
        keypoints = transform_points(back, output["keypoints"][None, ..., :2].float().cpu())[0].numpy()
    return Detections(
        boxes=boxes.numpy(),
        scores=output["scores"].float().cpu().numpy(),
        labels=(output["labels"].cpu().numpy() - 1).astype(np.int64),
        masks=masks,
        keypoints=keypoints,
    )


def _source_masks(masks: Tensor, width: int, height: int) -> list[dict[str, object]]:
    encoded: list[dict[str, object]] = []
    for part in torch.split(masks, 8):  # a hundred masks of a large image at once would need gigabytes
        resized = interpolate(part, (height, width), mode="bilinear", align_corners=False)
        encoded += masks_to_rle((resized[:, 0] > 0.5).numpy())
    return encoded


def as_list(results: Iterator[tuple[DetectionSample, Detections]]) -> tuple[list[Detections], dict[str, str]]:
    """All detections, none of images that could not be read, and these with their reasons."""
    found: list[Detections] = []
    skipped: dict[str, str] = {}
    for sample, detections in results:
        found.append(detections if sample.skipped is None else _none_of(detections))
        if sample.skipped is not None:
            skipped.update([sample.skipped])
    return found, skipped


def _none_of(found: Detections) -> Detections:
    masks = None if found.masks is None else found.masks[:0]
    keypoints = None if found.keypoints is None else found.keypoints[:0]
    return Detections(found.boxes[:0], found.scores[:0], found.labels[:0], masks, keypoints)
