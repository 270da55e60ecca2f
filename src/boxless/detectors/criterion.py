"""Set losses: each object is learned by the one query that suits it best.

DETR's (Carion et al., 2020, section 3.1) has a class "no object" and measures boxes as centres and sizes. Sparse
R-CNN's (Sun et al., 2021, and its code) has a focal loss per class and measures corners.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0
"""Weights of the three parts, in matching and in the loss (DETR, section A.4)."""
FOCAL_COST = 2.0
"""Sparse R-CNN's instead of CLASS_COST; the focal loss has torchvision's, RetinaNet's, alpha 0.25 and gamma 2."""

Form = Literal["cxcywh", "xyxy"]


class Objects(NamedTuple):
    """The objects of B images, padded to T each.

    Attributes:
        labels: (B, T), 0-based classes.
        boxes: (B, T, 4), as shares of the image's sides; cxcywh for DETR's loss, xyxy for the focal one.
        present: (B, T), which are not padding.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor

    @staticmethod
    def of(targets: list[dict[str, Tensor]], sizes: Tensor, form: Form) -> "Objects":
        """The objects of torchvision's targets.

        Args:
            targets: per image boxes (T, 4), xyxy px, and labels (T,) from 1.
            sizes: (B, 4), each image's width, height, width, height, px.
            form: format of the requested boxes.
        """
        boxes = [box_convert(t["boxes"], "xyxy", form) / size for t, size in zip(targets, sizes, strict=True)]
        present = [torch.ones_like(t["labels"], dtype=torch.bool) for t in targets]
        labels = [t["labels"] - 1 for t in targets]
        return Objects(*(pad_sequence(values, batch_first=True) for values in (labels, boxes, present)))

    def mean_count(self) -> Tensor:
        """Objects per process, at least 1: all processes must divide by the same number."""
        count = self.present.sum().float()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            count = count / distributed.get_world_size()
        return count.clamp(min=1)


class Matching(NamedTuple):
    """Assignment of queries to objects.

    Attributes:
        query: (L, B, T), per layer, image and object; 0 if no query does.
        matched: (L, B, T), false for padding and, if objects outnumber queries, for those left over.
    """

    query: Tensor
    matched: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The values (L, B, N, D) of the matched queries, (matched, D), in the order of layer, image and object."""
        index = self.query[..., None].expand(*self.query.shape, values.shape[-1])
        return values.gather(2, index)[self.matched]


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, objects: Objects, focal: bool = False) -> Matching:
    """The cheapest one-to-one assignment of queries to objects, layer by layer and image by image (DETR, eq. 1).

    Args:
        logits: (L, B, N, classes + 1), the last class is "no object"; (L, B, N, classes) if focal.
        boxes: (L, B, N, 4), in full precision and in the form of the objects' boxes: cxcywh, or xyxy if focal.
        objects: objects of the B images.
        focal: true if it is for `focal_set_loss`.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, for those alone who match

    layers, batch, queries = logits.shape[:3]
    count = objects.labels.shape[1]
    query = torch.zeros(layers, batch, count, dtype=torch.long)
    matched = torch.zeros(layers, batch, count, dtype=torch.bool)
    if count:
        labels = objects.labels[None, :, None].expand(layers, -1, queries, -1)
        full, true = logits.to(boxes.dtype), objects.boxes.to(boxes)
        cost = _focal_cost(full.gather(-1, labels)) if focal else -CLASS_COST * full.softmax(-1).gather(-1, labels)
        cost += L1_COST * torch.cdist(boxes, true.expand(layers, -1, -1, -1), p=1)  # (L, B, N, T)
        pairwise = torch.vmap(torch.vmap(generalized_box_iou, in_dims=(0, 0)), in_dims=(0, None))
        form: Form = "xyxy" if focal else "cxcywh"
        cost -= GIOU_COST * pairwise(_corners(boxes, form), _corners(true, form))
        # A network that has diverged still gets a matching: the loop stops it at its loss, with a better message.
        table = torch.nan_to_num(cost, 1e9, 1e9, -1e9).cpu().numpy()
        for image, present in enumerate(objects.present.cpu()):
            places = present.nonzero()[:, 0]
            for layer in range(layers):
                rows, columns = linear_sum_assignment(table[layer, image][:, places.numpy()])
                query[layer, image, places[columns]] = torch.from_numpy(rows)
                matched[layer, image, places[columns]] = True
    return Matching(query.to(logits.device), matched.to(logits.device))


def set_loss(
    logits: Tensor, boxes: Tensor, objects: Objects, matching: Matching, no_object: float, count: Tensor | float
) -> dict[str, Tensor]:
    """The parts of DETR's loss, each summed over the decoder layers and weighted as in the paper (eq. 2).

    Args:
        logits: as in `match`.
        boxes: as in `match`.
        objects: as in `match`.
        matching: from `match`.
        no_object: weight of queries that no object is matched with, in the mean over all queries.
        count: objects per process, which the box parts are divided by.

    Returns:
        classes, l1, giou; scalars.
    """
    layers, batch, queries, classes = logits.shape
    wanted = torch.full((layers, batch, queries), classes - 1, device=logits.device)
    layer, image, place = matching.matched.nonzero(as_tuple=True)
    wanted[layer, image, matching.query[layer, image, place]] = objects.labels[image, place]
    weight = torch.where(wanted == classes - 1, no_object, 1.0)
    nll = cross_entropy(logits.to(boxes.dtype).movedim(-1, 1), wanted, reduction="none")
    classified = CLASS_COST * ((weight * nll).sum((1, 2)) / weight.sum((1, 2))).sum()
    return {"classes": classified, **_box_parts(boxes, objects, matching, count, "cxcywh")}


def focal_set_loss(
    logits: Tensor, boxes: Tensor, objects: Objects, matching: Matching, count: Tensor | float
) -> dict[str, Tensor]:
    """The parts of Sparse R-CNN's loss, each summed over the stages and weighted as in the paper (eq. 1).

    Args:
        logits: (L, B, N, classes); a query without an object is negative for all of them.
        boxes: (L, B, N, 4), xyxy as shares, in full precision.
        objects: objects of the B images, xyxy.
        matching: from `match` with `focal`.
        count: objects per process, which all parts are divided by.

    Returns:
        classes, l1, giou; scalars.
    """
    wanted = torch.zeros_like(logits, dtype=boxes.dtype)
    layer, image, place = matching.matched.nonzero(as_tuple=True)
    wanted[layer, image, matching.query[layer, image, place], objects.labels[image, place]] = 1
    classified = FOCAL_COST * sigmoid_focal_loss(logits.to(boxes.dtype), wanted, reduction="sum") / count
    return {"classes": classified, **_box_parts(boxes, objects, matching, count, "xyxy")}


def _focal_cost(logits: Tensor) -> Tensor:
    """Cost of assigning each query to each class of the labels."""
    there, not_there = (sigmoid_focal_loss(logits, torch.full_like(logits, wanted)) for wanted in (1.0, 0.0))
    cost: Tensor = FOCAL_COST * (there - not_there)
    return cost


def _box_parts(
    boxes: Tensor, objects: Objects, matching: Matching, count: Tensor | float, form: Form
) -> dict[str, Tensor]:
    _, image, place = matching.matched.nonzero(as_tuple=True)
    found, true = matching.of(boxes), objects.boxes.to(boxes)[image, place]
    overlap = generalized_box_iou_loss(_corners(found, form), _corners(true, form), reduction="sum")
    return {"l1": L1_COST * (found - true).abs().sum() / count, "giou": GIOU_COST * overlap / count}


def _corners(boxes: Tensor, form: Form) -> Tensor:
    corners: Tensor = box_convert(boxes, form, "xyxy")
    return corners
