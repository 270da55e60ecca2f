"""The trunk: the part of a detector that needs no labels, shared by pretraining and fine-tuning.

Body, feature pyramid, RoI pooling and box head are torchvision's own modules, so that names and shapes agree with its
detectors and a pretrained trunk loads strictly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align

LEVELS = ("0", "1", "2", "3")
"""torchvision's names of P2..P5 (and of C2..C5)."""

Norm = Literal["batch", "sync", "frozen", "group"]


@dataclass(frozen=True)
class TrunkConfig:
    """What a trunk is made of."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """torchvision ResNet (stride in the 3x3 convolution)."""
    norm: Norm = "batch"
    """Of body, FPN and box head: batch, sync (over all processes), frozen (running statistics) or group (32 groups)."""
    fpn_channels: int = 256
    """Width of every pyramid level."""
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc"
    """SoCo's box head (4 convolutions with norm, 1 linear layer) or torchvision's two linear layers."""
    box_head_width: int = 1024
    """Width of the box head's linear layers."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from RGB in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides RGB in 0..1 after the mean."""


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """The constructor of a norm by its name; `sync` is converted when more than one process trains."""
    if norm == "frozen":
        return FrozenBatchNorm2d  # type: ignore[no-any-return]
    if norm == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    return nn.BatchNorm2d


class RoIPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign of 7 x 7 with half-pixel alignment and adaptive sampling, as in SoCo and Detectron2's ROIAlignV2.

    torchvision's own pooling is unaligned with two samples a bin; a head that was pretrained on aligned features would
    meet shifted ones.
    """

    def __init__(self, output_size: int = 7) -> None:
        super().__init__(featmap_names=list(LEVELS), output_size=output_size, sampling_ratio=0)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool the boxes of a batch of padded images (torchvision's call): (R, C, 7, 7).

        Levels follow FPN's rule, floor(4 + log2(side / 224)) kept within 2..5.
        """
        images = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat(boxes)
        sides = (rois[:, 2:] - rois[:, :2]).clamp(min=0).prod(1).sqrt()
        levels = (4 + torch.log2(sides / 224 + 1e-6)).floor().clamp(2, 5).long()
        height, width = x["0"].shape[-2:]  # padded to a multiple of 32, so that P2's stride is exactly 4
        return self.pool(x, torch.cat([images, rois], 1), levels, (4 * height, 4 * width))

    def pool(self, features: dict[str, Tensor], rois: Tensor, levels: Tensor, frame: tuple[int, int]) -> Tensor:
        """Pool each box from its own level.

        Args:
            features: of P2..P5, (B, C, h, w) each.
            rois: (R, 5), image index and xyxy in the frame.
            levels: (R,), 2 to 5.
            frame: height and width of the images that the boxes live in, px. Boxes are scaled by each level's own size
                and not by 1 / stride: P5 of a 112 px view has 4 cells, not 3.5.

        Returns:
            (R, C, 7, 7) float32.
        """
        size = self.output_size
        pooled = features["0"].new_zeros((len(rois), features["0"].shape[1], *size), dtype=torch.float32)
        for number, name in enumerate(LEVELS, start=2):
            chosen = (levels == number).nonzero().squeeze(1)
            if not len(chosen):
                continue
            feature = features[name].float()  # half precision rounds the sampling weights
            y, x = feature.shape[-2] / frame[0], feature.shape[-1] / frame[1]
            scaled = rois[chosen] * rois.new_tensor([1, x, y, x, y])
            pooled[chosen] = roi_align(feature, scaled, size, sampling_ratio=-1, aligned=True)
        return pooled


class Trunk(nn.Module):
    """Body, FPN, RoI pooling and box head.

    `backbone.body` gives C2..C5, `backbone` gives P2..P5 and torchvision's extra `pool` level, `box_head` turns
    (R, C, 7, 7) into (R, box_head_width).
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        norm = norm_layer(config.norm)
        # Zeroed last gammas make each residual block start as the identity, as in SoCo's, Barlow's and VICReg's code.
        body = getattr(resnet, config.backbone)(
            weights=None, norm_layer=norm, zero_init_residual=config.norm != "frozen"
        )
        width: int = body.inplanes
        self.backbone = BackboneWithFPN(
            body,
            return_layers={f"layer{i + 1}": name for i, name in enumerate(LEVELS)},
            in_channels_list=[width // 8, width // 4, width // 2, width],
            out_channels=config.fpn_channels,
            norm_layer=norm,
        )
        self.body_width = width
        self.roi_pool = RoIPool()
        if config.box_head == "2fc":
            self.box_head: nn.Module = TwoMLPHead(config.fpn_channels * 49, config.box_head_width)
        else:
            shape = (config.fpn_channels, 7, 7)
            self.box_head = FastRCNNConvFCHead(shape, [config.fpn_channels] * 4, [config.box_head_width], norm)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that reports speak of: backbone, FPN, RoI head."""
        return {"backbone": self.backbone.body, "FPN": self.backbone.fpn, "RoI head": self.box_head}

    def pyramid(self, image: Tensor) -> dict[str, Tensor]:
        """P2..P5 of images (B, 3, H, W), by torchvision's names."""
        features: dict[str, Tensor] = self.backbone(image)
        return {name: features[name] for name in LEVELS}

    def normalize(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..1 as the network sees it."""
        mean = image.new_tensor(self.config.mean)[:, None, None]
        std = image.new_tensor(self.config.std)[:, None, None]
        return (image - mean) / std


def freeze(trunk: Trunk, stages: int) -> None:
    """Stop the first stages of the body from training: 1 is the stem, 2 adds layer1, ... 5 is the whole body.

    Their norms use and keep the running statistics that were loaded, as frozen ones do.
    """
    order: Sequence[tuple[str, ...]] = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
    for names in order[:stages]:
        for name in names:
            stage = trunk.backbone.body[name].requires_grad_(False)
            for module in stage.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(norm: nn.Module, _: object) -> None:
    norm.training = False  # whatever mode the whole detector was put in
