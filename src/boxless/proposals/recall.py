"""Recall of proposals: the labelled objects that they cover."""

from collections.abc import Iterable
from dataclasses import dataclass
from os.path import realpath

import numpy as np
import torch
from torchvision.ops import box_iou

from boxless.data.annotations.read import LabelledData
from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.proposals.limits import Array
from boxless.proposals.table import ProposalTable

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # COCO, area in px^2


@dataclass(frozen=True)
class Recall:
    """Share (0..1) of objects that some box of their image covers with IoU >= `iou`; nan where there is no object.

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


def recall(pairs: Iterable[tuple[Array, Array]], iou: float = 0.5) -> Recall:
    """Measure proposals (P, 4) against objects (N, 4), one pair per image, all source px xyxy, crowds left out."""
    covered, areas, boxes = [np.zeros(0, bool)], [np.zeros(0)], []
    for proposals, objects in pairs:
        boxes.append(len(proposals))
        ours, theirs = (torch.as_tensor(np.asarray(b, np.float64).reshape(-1, 4)) for b in (proposals, objects))
        overlap = torch.cat([box_iou(theirs, ours), torch.zeros(len(theirs), 1)], dim=1)
        covered.append((overlap.amax(1) >= iou).numpy())
        areas.append((theirs[:, 2:] - theirs[:, :2]).prod(1).numpy())
    hits, area = np.concatenate(covered), np.concatenate(areas)
    chosen = {"all": np.ones(len(hits), bool)} | {n: (area >= low) & (area < high) for n, (low, high) in SIZES.items()}
    shares = {name: float(hits[rows].mean()) if rows.any() else float("nan") for name, rows in chosen.items()}
    objects_of = {name: int(rows.sum()) for name, rows in chosen.items()}
    return Recall(iou, shares, objects_of, len(boxes), float(np.mean(boxes)) if boxes else float("nan"))


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
