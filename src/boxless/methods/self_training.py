"""Self-training: objects that a detector finds in images without labels become labels for itself.

A teacher, the moving average of the student's weights, looks at a weak view of an image; the student learns what it
found there in a strong view of the same image (Unbiased Teacher, Liu et al., 2021, arXiv:2102.09480; Soft Teacher, Xu
et al., 2021, arXiv:2106.09018). From step T_b on, with T_r steps of ramp:

    L = L_labels + lambda(t) L_unlabelled,    lambda(t) = weight min(1, (t - T_b + 1) / T_r)                         (1)

A find counts as a label if its score is one of the K_c best of its class c over the last I images, where the n_c labels
of the class in N labelled images say how many there should be (LabelMatch, Chen et al., 2022, arXiv:2206.06608):

    tau_c = max(tau, the K_c-th score of class c),    K_c = ceil(density I n_c / N)                                  (2)

and if its place is certain: the teacher finds it again, with IoU >= u, in the mirrored view. Score and box are the
means of both. Finds from tau / 2 on that do not count are doubtful: the student takes them neither for objects nor for
background. Images without a find that counts are not learned from. L_unlabelled has the terms of the detector's loss
that say what is where, not those that say how far it reaches, as in Unbiased Teacher: few finds fit so well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from boxless.data.detection import LEAST_VISIBLE
from boxless.data.two_views import TwoViews
from boxless.geometry.boxes import area

BOX_TERMS = ("loss_box_reg", "loss_rpn_box_reg", "bbox_regression", "bbox_ctrness", "loss_l1", "loss_giou")
"""Terms of the detectors' losses that are of a box's place and extent."""
OTHER_TERMS = ("loss_mask", "loss_keypoint", "loss_denoising")
"""Terms of what is not found, and of noisy copies of boxes."""
AGREEING = 0.7
"""IoU u of a find with itself in the mirrored view, from which on its place is certain."""
SAME_OBJECT = 0.7
"""IoU from which on finds of several classes are of one object; the surest stays."""
NEVER = 2.0
"""Score that no find has."""
WINDOW = 256
"""Images I that scores are ranked over."""


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Self-training on images without labels (`--unlabelled`)."""

    burn_in: float = 0.4
    """Share of the run that learns from labels alone."""
    weight: float = 1.0
    """Largest weight of the loss on unlabelled images."""
    density: float = 0.5
    """Finds per unlabelled image that count as labels, of each class, as a share of the labels per labelled image."""

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"burn_in: expected 0 up to, but not, 1, got {self.burn_in}")
        if self.weight < 0:
            raise ValueError(f"weight: expected 0 or more, got {self.weight}")
        if self.density <= 0:
            raise ValueError(f"density: expected more than 0, got {self.density}")


def ramp(step: int, begin: int, steps: int, weight: float) -> float:
    """The weight lambda of the unlabelled loss (eq. 1), from step `begin` on rising over `steps` steps; 0 before."""
    return weight * min(1.0, max(0, step - begin + 1) / max(1, steps))


class Finds(NamedTuple):
    """Detections in an image.

    Attributes:
        boxes: (N, 4), source px.
        scores: (N,), 0..1.
        labels: (N,), from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def at(self, rows: Tensor) -> "Finds":
        """Some of the finds."""
        return Finds(*(values[rows] for values in self))


def agreed(found: Finds, again: Finds) -> tuple[Finds, Tensor]:
    """Finds in an image that were looked for a second time, in its mirrored view.

    Args:
        found: the finds.
        again: those of the mirrored view, source px too.

    Returns:
        The finds, one for an object, with the means of their scores and boxes in both views (the score of the second is
        0 if it is not there), by descending score; and (N,), whether their place is certain.
    """
    overlap = box_iou(found.boxes, again.boxes) * (found.labels[:, None] == again.labels)
    overlap = torch.cat([overlap, overlap.new_zeros(len(overlap), 1)], 1)  # the last: not found again
    iou, row = overlap.max(1)
    there = iou >= 0.5
    second = torch.cat([again.scores, again.scores.new_zeros(1)])[torch.where(there, row, len(again.scores))]
    places = torch.cat([again.boxes, again.boxes.new_zeros(1, 4)])[row]
    boxes = torch.where(there[:, None], (found.boxes + places) / 2, found.boxes)
    means = Finds(boxes, (found.scores + second) / 2, found.labels)
    kept = nms(means.boxes, means.scores, SAME_OBJECT)
    return means.at(kept), (iou >= AGREEING)[kept]


class Ranking:
    """The scores of the newest images, and from which on they count (eq. 2).

    Args:
        rates: (C,), finds of each class per image that count.
        floor: lowest score that counts.
        window: images.

    Attributes:
        images: images so far.
    """

    def __init__(self, rates: Tensor, floor: float, window: int = WINDOW) -> None:
        self.rates, self.floor, self.window = rates.double(), floor, window
        self.images = 0
        self._rows = torch.zeros(0, 4, dtype=torch.float64)  # image, class from 0, score, whether it became a label

    @property
    def seen(self) -> int:
        """Images that are ranked."""
        return min(self.images, self.window)

    def add(self, rows: Tensor, images: int) -> None:
        """Take in the finds of a step.

        Args:
            rows: (N, 4), for each the number of its image in the step, class from 0, score, and 1 if it is a label.
            images: images of the step.
        """
        moved = rows.double() + torch.tensor([self.images, 0, 0, 0])
        self.images += images
        together = torch.cat([self._rows, moved])
        self._rows = together[together[:, 0] >= self.images - self.window]

    def thresholds(self) -> Tensor:
        """The lowest score of each class that counts, (C,)."""
        wanted = (self.rates * self.seen - 1e-6).ceil().long()
        scores = self._rows[self._rows[:, 2].argsort(descending=True)]
        result = torch.full_like(self.rates, self.floor)
        for number, count in enumerate(wanted.tolist()):
            own = scores[scores[:, 1] == number, 2]
            if not count:
                result[number] = NEVER  # nothing is known yet, or the labels do not have the class
            elif len(own) > count:
                result[number] = max(self.floor, float(own[count - 1]))
        return result

    def labels_per_image(self) -> Tensor:
        """Finds of each class that became labels, per image, (C,)."""
        kept = self._rows[self._rows[:, 3] > 0, 1].long()
        return kept.bincount(minlength=len(self.rates)).double() / max(1, self.seen)

    def empty(self) -> float:
        """Share of the images in which nothing was found, not even something doubtful."""
        return 1 - len(set(self._rows[:, 0].tolist())) / max(1, self.seen)

    def state_dict(self) -> dict[str, Any]:
        """The scores, for a checkpoint."""
        return {"rows": self._rows, "images": self.images}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over scores."""
        self._rows, self.images = state["rows"], state["images"]


def pseudo_target(views: TwoViews, finds: Finds, counts: Tensor, ignores: bool) -> dict[str, Tensor]:
    """The target of the strong view, see `DetectionSample.target`.

    Args:
        views: views of the image.
        finds: the finds in it.
        counts: (N,), which are labels; the others are doubtful.
        ignores: true if doubtful ones can be ignored; else they are left out.
    """
    (boxes,), (visible,) = views.strong.boxes(finds.boxes[None])
    counts = counts & ~_covered(boxes, views.erased)
    kept = (visible > LEAST_VISIBLE) & (counts | ignores)
    target = {"boxes": boxes[kept], "labels": torch.where(counts, finds.labels, -1)[kept]}
    return {**target, "ignored": ~counts[kept]} if ignores else target


def _covered(boxes: Tensor, patches: Tensor) -> Tensor:
    """Which boxes (N, 4) have half of their area or more in one of the patches (E, 4), (N,)."""
    low, high = torch.maximum(boxes[:, None, :2], patches[:, :2]), torch.minimum(boxes[:, None, 2:], patches[:, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    return (inside >= 0.5 * area(boxes)[:, None]).any(1)
