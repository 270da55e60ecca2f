"""Inference: load a fine-tuned detector, run it over images, and give what it finds in source pixels."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.types import LabelledData
from boxless.data.dataloader import make_loader
from boxless.data.detection import DetectionDataset, DetectionSample, resize
from boxless.data.images import EXTENSIONS, BadImage, decode
from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.data.segmentation import SegmentationDataset, sides
from boxless.detectors.detector import keep_above
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, masks_to_rle
from boxless.geometry.affine import invert, transform_points
from boxless.geometry.boxes import clip, transform_boxes
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.training.device import make_fabric, worker_count


def load_detector(where: str | Path) -> tuple[nn.Module, tuple[str, ...], FinetuneRecipe]:
    """The detector of a fine-tuned run, in eval mode on the CPU, its classes and its recipe.

    Raises:
        UserError: it is not a fine-tuned run, or its files do not belong together.
    """
    run = Run.open(where, trained=True)
    recipe = run.recipe
    if not isinstance(recipe, FinetuneRecipe):
        raise UserError(
            f"run {where}: is a pretraining run, which has no detector yet; "
            f"make one with boxless finetune --weights {where}, or measure it with boxless compare"
        )
    classes, keypoints = run.classes, len(skeleton_of(run.path).names)
    detector = recipe.detector.build(Trunk(recipe.trunk), len(classes), keypoints)
    try:
        detector.load_state_dict(read_tensors(run.weights))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        raise UserError(
            f"{run.weights}: not the weights of the recipe.yaml and labels.json beside it ({''.join(first).strip()})"
        ) from error
    return detector.eval(), classes, recipe


def skeleton_of(run: str | Path) -> Skeleton:
    """The keypoints that a fine-tuned run has learned; none for other detectors."""
    saved = Run(Path(run)).labels.get("skeleton", {})
    edges = [(int(first), int(second)) for first, second in saved.get("edges", ())]
    return Skeleton(tuple(saved.get("names", ())), tuple(edges))


def find_images(where: str | Sequence[str]) -> ImageIndex:
    """Images as `index_images` finds them, or single image files.

    Raises:
        UserError: if there are none, or files and folders are mixed.
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
        return source_sample(source, row, self.shorter, self.longest)


def source_sample(source: NDArray[np.uint8], row: int, shorter: Sequence[int], longest: int) -> DetectionSample:
    """An image (H, W, 3) uint8 RGB, in row `row`, as a detector takes it; sides as in `SourceImages`."""
    size = (source.shape[1], source.shape[0])
    image, from_source = resize(source, *sides(size, shorter, longest))
    return DetectionSample(image, from_source, {}, row, size)


def detect(
    detector: nn.Module, dataset: Dataset[DetectionSample], recipe: FinetuneRecipe, fabric: Fabric | None = None
) -> Iterator[tuple[DetectionSample, Detections]]:
    """Detections in every image of a data set, in its order; a sample's `skipped` tells that it is unreadable.

    The detector stays in the mode that it was in. By default it is moved to whatever device there is.
    """
    for sample, output in _outputs(detector, dataset, recipe, fabric):
        yield sample, to_source(output, sample)


def detect_labelled(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe, fabric: Fabric | None = None
) -> tuple[list[Detections], dict[str, str]]:
    """Detections in every labelled image, in their order, and the images that could not be read: file -> reason."""
    dataset = DetectionDataset(data, recipe.min_size, recipe.max_size, training=False, masks=False)
    found: list[Detections] = []
    skipped: dict[str, str] = {}
    for sample, detections in detect(detector, dataset, recipe, fabric):
        if sample.skipped is not None:
            skipped.update([sample.skipped])
            detections = detections.subset(np.arange(0))
        found.append(detections)
    return found, skipped


def detect_images(
    detector: nn.Module, index: ImageIndex, recipe: FinetuneRecipe, score: float
) -> Iterator[tuple[DetectionSample, Detections]]:
    """Detections with more than `score` (0..1) in every image."""
    # Before NMS and masks and not after them: the same result, since boxes are only ever suppressed by surer ones.
    keep_above(detector, score)
    yield from detect(detector, SourceImages(index, recipe.min_size[-1:], recipe.max_size), recipe)


def segment(
    detector: nn.Module, dataset: Dataset[DetectionSample], recipe: FinetuneRecipe, fabric: Fabric | None = None
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """Class maps (H, W), source px, of every image of a data set, by FCN; see `detect`.

    The logits are enlarged to the source, not the classes, and by the head's own `align_corners`, as in OpenMMLab.
    """
    assert isinstance(recipe.detector, FCNConfig)
    aligned = recipe.detector.align_corners
    for sample, output in _outputs(detector, dataset, recipe, fabric):
        width, height = sample.source_size
        logits = interpolate(output["logits"][None], (height, width), mode="bilinear", align_corners=aligned)
        # on a processor argmax takes twice as long as max
        yield sample, logits.max(1).indices[0].to(torch.uint8).cpu().numpy()


def segment_labelled(
    detector: nn.Module, data: LabelledData, recipe: FinetuneRecipe, fabric: Fabric | None = None
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """Class maps of labelled images; those of the labels are in the samples' targets."""
    dataset = SegmentationDataset(data, recipe.min_size, recipe.max_size, None)
    yield from segment(detector, dataset, recipe, fabric)


def segment_images(
    detector: nn.Module, index: ImageIndex, recipe: FinetuneRecipe
) -> Iterator[tuple[DetectionSample, NDArray[np.uint8]]]:
    """Class maps of images without labels."""
    yield from segment(detector, SourceImages(index, recipe.min_size[-1:], recipe.max_size), recipe)


def _outputs(
    detector: nn.Module, dataset: Dataset[DetectionSample], recipe: FinetuneRecipe, fabric: Fabric | None
) -> Iterator[tuple[DetectionSample, dict[str, Tensor]]]:
    fabric = fabric or make_fabric(recipe.precision)
    training = detector.training
    detector.to(fabric.device).eval()
    images = len(dataset)  # type: ignore[arg-type]
    workers = min(worker_count(recipe.workers, 8), images // 8)  # starting one costs more than a few images
    try:
        for samples in make_loader(dataset, 4, workers):
            batch = [sample.image.to(fabric.device).float() / 255 for sample in samples]
            with torch.inference_mode(), fabric.autocast():
                outputs = detector(batch)
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
