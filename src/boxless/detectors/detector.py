"""The protocol of a detector: a config that builds it around a trunk, and a module like torchvision's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

from boxless.detectors.trunk import Neck, Trunk, TrunkConfig

Targets = Literal["boxes", "masks", "keypoints", "classes"]
"""Targets of a detector: boxes, boxes with masks or keypoints, or a class for every pixel."""


@runtime_checkable
class DetectorConfig(Protocol):
    """A detector's settings; the defaults are torchvision's and so the papers'.

    Attributes:
        necks: the necks that it takes, its usual one first.
        targets: kind of its targets.
        uses_box_head: true if the trunk's box head becomes the detector's.
        ignores: true if objects can be ignored in training, see `DetectionSample.target`.
        sure: score from which on a detection may become a label in self-training, see `methods/self_training.py`.
    """

    necks: ClassVar[tuple[Neck, ...]]
    targets: ClassVar[Targets]
    uses_box_head: ClassVar[bool]
    ignores: ClassVar[bool]
    sure: ClassVar[float]

    @property
    def kind(self) -> str:
        """The detector's name in recipes."""

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> nn.Module:
        """The detector around the trunk's own modules (not copies).

        Args:
            trunk: with one of `necks`.
            classes: without background; labels are 1..classes. For FCN all classes, labels from 0.
            keypoints: number of keypoints per object, for keypoint detectors.
        """


@dataclass(frozen=True)
class BoxDetectorConfig:
    """The settings that all detectors of boxes share."""

    kind: str = ""
    score_threshold: float = 0.05
    """Lowest score of a detection that is kept."""
    detections: int = 100
    """Largest number of detections per image."""

    targets: ClassVar[Targets] = "boxes"
    uses_box_head: ClassVar[bool] = False
    ignores: ClassVar[bool] = False
    sure: ClassVar[float] = 0.3
    """Right for a sigmoid per class under a focal loss, whose scores stay low (MixPL's for FCOS)."""


def build_trunk(config: TrunkConfig, detector: DetectorConfig) -> Trunk:
    """The trunk of a detector, without a box head that it does not use: reports then do not mention it."""
    trunk = Trunk(config)
    if hasattr(trunk, "box_head") and not detector.uses_box_head:
        del trunk.box_head
    return trunk


def keep_above(detector: nn.Module, score: float) -> float:
    """Make a detector return only what it finds with more than `score`, 0..1; the score that was asked for before."""
    part: Any = getattr(detector, "roi_heads", detector)
    before: float = part.score_thresh
    part.score_thresh = score
    return before


def kept_above(detector: nn.Module) -> float:
    """The score that `keep_above` sets."""
    return float(getattr(detector, "roi_heads", detector).score_thresh)  # type: ignore[arg-type]


class NormalizeAndPad(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform without resizing: the loader has already resized, so the maps stay in one place.

    torchvision's own `_skip_resize` holds in training only; at test it would enlarge every image to 800 px.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(0, 0, list(trunk.config.mean), list(trunk.config.std))

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image and its target as they are."""
        return image, target


def frames(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(B, 4): width, height, width, height of images given by height and width, px."""
    # Not torch.tensor: it would keep the sides of the image that an export to ONNX is traced with.
    sides = [torch.as_tensor(side) for height, width in sizes for side in (width, height) * 2]
    return torch.stack(sides).view(-1, 4).to(device)


def surest_pairs(logits: Tensor, corners: Tensor, size: tuple[int, int], count: int, above: float) -> dict[str, Tensor]:
    """The most confident pairs of a box and a class in an image, if each class has its own score.

    Args:
        logits: (N, classes).
        corners: (N, 4), xyxy px.
        size: the image's height and width, px.
        count: largest number of pairs.
        above: lowest score, 0..1.

    Returns:
        boxes (D, 4) inside the image, scores (D,), labels (D,) from 1.
    """
    scores, pairs = logits.sigmoid().flatten().topk(min(count, logits.numel()))
    sure = scores > above
    box, label = pairs[sure] // logits.shape[-1], pairs[sure] % logits.shape[-1]
    return {"boxes": clip_boxes_to_image(corners[box], size), "scores": scores[sure], "labels": label + 1}
