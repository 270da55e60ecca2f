"""Faster, Mask and Keypoint R-CNN of torchvision around a trunk, with a feature pyramid or on C4.

The C4 detectors are those of MoCo's and SoCo's transfer to VOC and COCO (Detectron2's R50-C4 with
`Res5ROIHeadsExtraNorm`): the RPN on C4 with 15 anchors a place, boxes pooled to 14 x 14, the last stage of the ResNet
with one more norm after it as the head of boxes and masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from boxless.detectors.fcn import FCNConfig
from boxless.detectors.hybrid_encoder import DecoderConfig
from boxless.detectors.trunk import LastStage, RoIPool, Trunk, norm_layer
from boxless.errors import UserError

Kind = Literal[
    "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "sparse_rcnn", "detr", "rt_detr", "fcn"
]


@dataclass(frozen=True)
class DetectorConfig:
    """A detector's kind and size; the defaults are torchvision's, which are the papers'."""

    kind: Kind = "faster_rcnn"
    """Boxes, boxes and masks, or boxes and keypoints in two stages; boxes in one stage, by RetinaNet or FCOS, whose
    trunk has a pyramid from P3 up; boxes by Sparse R-CNN, by DETR, whose trunk has a transformer for a neck, or by
    RT-DETR (v2), whose trunk has its hybrid encoder; or a class for every pixel by FCN, on a ResNet alone."""
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    """Side of the anchors on P2..P6 (all of them on C4), px; three aspect ratios each. RetinaNet has them on P3..P7,
    with two larger ones to the octave; FCOS has none."""
    rpn_samples: int = 256
    """Anchors per image in the RPN's loss."""
    rpn_proposals: int = 2000
    """Proposals per image kept in training, from as many before NMS on each level (6 times as many on C4); half as
    many at test."""
    rpn_kept: int | None = None
    """Of these, proposals kept in training after NMS; all by default. Detectron2 keeps 1000 on a pyramid and 1500 for
    keypoints."""
    roi_samples: int = 512
    """RoIs per image in the heads' loss; a quarter of them on objects."""
    box_beta: float = 1 / 9
    """Where the heads' box loss turns from a parabola into a line: torchvision's; Detectron2 has 0 (a line throughout)
    and 0.5 for keypoints."""
    mask_norm: bool = False
    """Whether the convolutions of a pyramid's mask head have the trunk's norm, as in the transfers of SoCo, PixPro and
    DenseCL; those of MoCo and DetCo have none."""
    loss_normalizer: Literal["image", "moving_average"] = "image"
    """What RetinaNet's losses are divided by: each image's anchors on objects, as in its paper, or Detectron2's moving
    average of a batch's."""
    score_threshold: float = 0.05
    """Detections below it are dropped."""
    detections: int = 100
    """At most, per image."""
    no_object: float = 0.1
    """DETR's weight of queries without an object; lower where images show few objects."""
    learned_proposals: int = 300
    """Sparse R-CNN's boxes per image, all learned; its smaller model has 100."""
    rt_detr: DecoderConfig = DecoderConfig()  # noqa: RUF009 (frozen)
    """RT-DETR's decoder."""
    fcn: FCNConfig = FCNConfig()  # noqa: RUF009 (frozen)
    """Which FCN, and how it is tested."""


def two_stage(trunk: Trunk, classes: int, config: DetectorConfig, keypoints: int = 0) -> FasterRCNN:
    """A detector around the trunk's own modules (not copies).

    Args:
        trunk: its backbone, RoI pooling and box head become the detector's.
        classes: without background; the detector's labels are 1..classes, 0 is background.
        config: kind and sizes.
        keypoints: of every object, for Keypoint R-CNN.

    Returns:
        torchvision's FasterRCNN, MaskRCNN or KeypointRCNN. It takes images that already have their final size.
    """
    single = trunk.config.neck == "c4"
    before_nms = 6 if single else 1  # Detectron2's C4 keeps 12000 of all anchors, its FPN 2000 of each level
    at_test = max(config.rpn_proposals // 2, config.detections)
    sizes = (config.anchor_sizes,) if single else tuple((size,) for size in config.anchor_sizes)
    box_head = NormedLastStage(trunk) if single else trunk.box_head
    options = {
        "rpn_anchor_generator": Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        "rpn_batch_size_per_image": config.rpn_samples,
        "rpn_pre_nms_top_n_train": before_nms * config.rpn_proposals,
        "rpn_post_nms_top_n_train": config.rpn_kept or config.rpn_proposals,
        "rpn_pre_nms_top_n_test": before_nms * at_test,
        "rpn_post_nms_top_n_test": at_test,
        "box_roi_pool": trunk.roi_pool,
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(trunk.head_width, classes + 1),
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
    }
    if config.kind == "faster_rcnn":
        detector = FasterRCNN(trunk.backbone, **options)
    elif config.kind == "keypoint_rcnn":
        detector = KeypointRCNN(trunk.backbone, **options, **_keypoint_branch(trunk, keypoints))
    else:
        detector = MaskRCNN(trunk.backbone, **options, **_mask_branch(trunk, box_head, classes, config.mask_norm))
    if config.box_beta != DetectorConfig.box_beta:
        detector.roi_heads.__class__ = BetaRoIHeads  # torchvision's detectors build their heads themselves
        detector.roi_heads.box_beta = config.box_beta
    detector.transform = NormalizeAndPad(0, 0, list(trunk.config.mean), list(trunk.config.std))
    for head in (detector.rpn.head, detector.roi_heads.box_predictor):
        head.register_forward_hook(_in_float32)
    return detector


def _in_float32(_: nn.Module, __: Any, output: tuple[Any, Any]) -> tuple[Any, Any]:
    """A head's scores and offsets: torchvision makes boxes of their type, which in bf16 are whole pixels, and ties."""
    scores, offsets = output
    if isinstance(scores, list):  # one for each level
        return [level.float() for level in scores], [level.float() for level in offsets]
    return scores.float(), offsets.float()


def _mask_branch(trunk: Trunk, box_head: nn.Module, classes: int, normed: bool) -> dict[str, nn.Module]:
    if isinstance(box_head, NormedLastStage):
        if normed:
            raise UserError("detector.mask_norm: true; masks on C4 share the box head with its norms, set it to false")
        return {
            "mask_roi_pool": trunk.roi_pool,
            "mask_head": SharedHead(box_head),
            "mask_predictor": MaskRCNNPredictor(trunk.head_width, 256, classes + 1),
        }
    width = trunk.config.fpn_channels
    return {
        "mask_head": MaskRCNNHeads(width, (width,) * 4, 1, norm_layer(trunk.config.norm) if normed else None),
        "mask_predictor": MaskRCNNPredictor(width, width, classes + 1),
    }


def _keypoint_branch(trunk: Trunk, keypoints: int) -> dict[str, nn.Module]:
    width = 2 * trunk.config.fpn_channels  # 512, as in the paper, on a pyramid of its width
    return {
        "keypoint_roi_pool": RoIPool(14),
        "keypoint_head": KeypointRCNNHeads(trunk.config.fpn_channels, (width,) * 8),
        "keypoint_predictor": FullPrecisionPredictor(width, keypoints),
    }


class FullPrecisionPredictor(KeypointRCNNPredictor):  # type: ignore[misc]
    """torchvision's heatmaps of keypoints, which in half precision would have their highest value in many places.

    Its loss views them as (R K, 56 56), which channels that lie last in memory do not allow.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (R, C, 14, 14) to heatmaps (R, K, 56, 56)."""
        with torch.autocast(maps.device.type, enabled=False):
            heatmaps: Tensor = super().forward(maps.float())
        return heatmaps.contiguous()


class NormedLastStage(LastStage):
    """A C4 trunk's box head with a new norm on its maps, which keeps a pretrained stage's scale from the predictor."""

    def __init__(self, trunk: Trunk) -> None:
        assert isinstance(trunk.box_head, LastStage)
        super().__init__(trunk.box_head.layer4)
        self.norm = norm_layer(trunk.config.norm)(trunk.head_width)

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C, 7, 7)."""
        maps: Tensor = self.norm(super().maps(pooled))
        return maps


class SharedHead(nn.Module):
    """The maps of the box head, for masks.

    Detectron2 takes the maps of foreground boxes out of those of all boxes; torchvision pools them once more. So that
    norms neither learn from these boxes twice nor fail without any, they are used with their running statistics.
    """

    def __init__(self, box_head: NormedLastStage) -> None:
        super().__init__()
        self._box_head = (box_head,)  # in a tuple, so that its weights are not registered (and saved) twice

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C, 7, 7)."""
        (head,) = self._box_head
        training = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        for norm in training:
            norm.training = False
        maps = head.maps(pooled)
        for norm in training:
            norm.training = True
        return maps


class BetaRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads with another smooth L1 loss of boxes than its own, whose beta is 1/9.

    What that loss is of is kept for the length of a step: torchvision's `forward` offers no other place for it.
    """

    box_beta: float

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        """torchvision's, of which labels and offsets are kept."""
        samples = super().select_training_samples(proposals, targets)
        self._labels, self._offsets = torch.cat(samples[2]), torch.cat(samples[3])
        return samples

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        """torchvision's results and losses."""
        predicted: list[Tensor] = []
        hook = self.box_predictor.register_forward_hook(lambda _, __, output: predicted.append(output[1]))
        try:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        if self.training:
            losses["loss_box_reg"] = box_loss(predicted[0], self._labels, self._offsets, self.box_beta)
            del self._labels, self._offsets
        return result, losses


def box_loss(predicted: Tensor, labels: Tensor, offsets: Tensor, beta: float) -> Tensor:
    """Smooth L1 of boxes on objects, summed and divided by the number of all boxes, as in Detectron2 and torchvision.

    Args:
        predicted: (R, 4 (classes + 1)), offsets by class.
        labels: (R,), 0 is background.
        offsets: (R, 4), wanted.
        beta: where the parabola turns into a line; 0: L1.
    """
    (on_object,) = torch.where(labels > 0)
    of_class = predicted.view(len(labels), -1, 4)[on_object, labels[on_object]]
    return smooth_l1_loss(of_class.float(), offsets[on_object], reduction="sum", beta=beta) / len(labels)


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's, in float32 at least: its own are of the maps' type, which in bf16 moves them by up to 8 px."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Take the type and device that anchors shall be of."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


class NormalizeAndPad(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform without its resizing: the loader has resized, so that the maps stay in one place.

    torchvision's own `_skip_resize` holds in training only; at test it would enlarge every image to 800 px.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image and its target as they are."""
        return image, target


def frames(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(B, 4): width, height, width, height of images given by height and width, px."""
    # Not torch.tensor: it would keep the sides of the image that an export to ONNX is traced with.
    sides = [torch.as_tensor(side) for height, width in sizes for side in (width, height) * 2]
    return torch.stack(sides).view(-1, 4).to(device)
