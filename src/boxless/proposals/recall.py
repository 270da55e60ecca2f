"""Recall of proposals: the labelled objects that they cover."""

from collections.abc import Iterable
from dataclasses import dataclass
from os.path import realpath

import numpy as np
import torch
from numpy.typing import NDArray

from boxless.data.annotations.read import LabelledData
from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.geometry.boxes import area, best_iou
from boxless.proposals.limits import Array
from boxless.proposals.table import ProposalTable

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # COCO, area in px^2


@dataclass(frozen=True)
class Recall:
    """Share (0..1) of objects that some box of their image covers with IoU >= `iou`; nan if there is no object.

    Attributes:
        iou: the threshold.
        shares: by "all", "small", "medium" and "large", COCO's sizes but of the box, in source px.
        objects: their numbers.
        images: number of images with labels.
        boxes_per_image: the mean over these images.
    """

    iou: float
    shares: dict[str, float]
    objects: dict[str, int]
    images: int
    boxes_per_image: float

    def __str__(self) -> str:
        lines = [f"recall at IoU {self.iou:g} with {self.boxes_per_image:.1f} boxes per image, {self.images} images"]
        lines += [f"  {name:<7}{share:6.3f}  of {self.objects[name]} objects" for name, share in self.shares.items()]
        return "\n".join(lines)


def best_overlaps(pairs: Iterable[tuple[Array, Array]]) -> dict[str, NDArray[np.float64]]:
    """Each object's IoU with the proposal that fits it best: of "all" objects, and by COCO's sizes.

    Args:
        pairs: (proposals (P, 4), objects (N, 4)) of each image, source px xyxy, crowds left out.
    """
    best, areas = [np.zeros(0)], [np.zeros(0)]
    for proposals, objects in pairs:
        ours, theirs = (torch.as_tensor(np.asarray(b, np.float64).reshape(-1, 4)) for b in (proposals, objects))
        best.append(best_iou(theirs, ours).numpy())
        areas.append(area(theirs).numpy())
    values, sizes = np.concatenate(best), np.concatenate(areas)
    return {"all": values} | {name: values[(sizes >= low) & (sizes < high)] for name, (low, high) in SIZES.items()}


def recall(pairs: Iterable[tuple[Array, Array]], iou: float = 0.5) -> Recall:
    """Measure the proposals of images against their objects, both as `best_overlaps` takes them."""
    pairs = list(pairs)
    overlaps = best_overlaps(pairs)
    shares = {name: float((each >= iou).mean()) if len(each) else float("nan") for name, each in overlaps.items()}
    boxes = float(np.mean([len(proposals) for proposals, _ in pairs])) if pairs else float("nan")
    return Recall(iou, shares, {name: len(each) for name, each in overlaps.items()}, len(pairs), boxes)


def labelled_pairs(proposals: ProposalTable, index: ImageIndex, labels: LabelledData) -> list[tuple[Array, Array]]:
    """Return (proposals, objects without crowds) of each labelled image that the index has, matched by file.

    Raises:
        UserError: the index has none of the labelled images.
    """
    wanted = {realpath(image.path): image for image in labels.images}
    rows = ((i, realpath(index.path(i))) for i in range(len(index)))
    pairs = [(proposals.boxes(i), wanted[path].boxes[~wanted[path].crowd]) for i, path in rows if path in wanted]
    if not pairs:
        raise UserError(f"{labels.origin}: labels none of the {len(index)} images, e.g. {index.path(0)}")
    return pairs
