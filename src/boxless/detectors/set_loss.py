"""DETR's set loss (Carion et al., 2020, section 3.1): each object is learned by the one query that suits it best."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0
"""Weights of the three parts, in matching and in the loss (section A.4)."""


class Objects(NamedTuple):
    """The objects of B images, padded to T each.

    Attributes:
        labels: (B, T), 0-based classes.
        boxes: (B, T, 4), cxcywh as shares of the image's sides.
        present: (B, T), which are not padding.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor


class Matching(NamedTuple):
    """Which query answers for which object.

    Attributes:
        query: (L, B, T), per layer, image and object; 0 where no query does.
        matched: (L, B, T), false for padding and, where objects outnumber queries, for those left over.
    """

    query: Tensor
    matched: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The values (L, B, N, D) of the matched queries, (matched, D), in the order of layer, image and object."""
        index = self.query[..., None].expand(*self.query.shape, values.shape[-1])
        return values.gather(2, index)[self.matched]


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, objects: Objects) -> Matching:
    """The cheapest one-to-one assignment of queries to objects, layer by layer and image by image (eq. 1).

    Args:
        logits: (L, B, N, classes + 1), the last class is "no object".
        boxes: (L, B, N, 4), cxcywh as shares, in full precision.
        objects: of the B images.
    """
    layers, batch, queries = logits.shape[:3]
    count = objects.labels.shape[1]
    query = torch.zeros(layers, batch, count, dtype=torch.long)
    matched = torch.zeros(layers, batch, count, dtype=torch.bool)
    if count:
        probability = logits.to(boxes.dtype).softmax(-1)
        labels = objects.labels[None, :, None].expand(layers, -1, queries, -1)
        cost = -CLASS_COST * probability.gather(-1, labels)  # (L, B, N, T)
        cost += L1_COST * torch.cdist(boxes, objects.boxes.to(boxes).expand(layers, -1, -1, -1), p=1)
        pairwise = torch.vmap(torch.vmap(generalized_box_iou, in_dims=(0, 0)), in_dims=(0, None))
        cost -= GIOU_COST * pairwise(_corners(boxes), _corners(objects.boxes.to(boxes)))
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
    """The parts of the loss, each summed over the decoder layers and weighted as in the paper (eq. 2).

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
    found, true = matching.of(boxes), objects.boxes.to(boxes)[image, place]
    return {
        "classes": CLASS_COST * ((weight * nll).sum((1, 2)) / weight.sum((1, 2))).sum(),
        "l1": L1_COST * (found - true).abs().sum() / count,
        "giou": GIOU_COST * generalized_box_iou_loss(_corners(found), _corners(true), reduction="sum") / count,
    }


def _corners(boxes: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners
