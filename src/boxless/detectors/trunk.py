"""The trunk: the part of a detector that needs no labels, shared by pretraining and fine-tuning.

Body, feature pyramid, RoI pooling and box head are torchvision's own modules, so that names and shapes agree with its
detectors and a pretrained trunk loads strictly. A C4 trunk has no pyramid: boxes are pooled from the ResNet's last map
but one, and its last stage is the box head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from boxless.detectors.backbones import LEVELS as LEVELS
from boxless.detectors.backbones import RESNETS, Body, ResNetBody, build_body, build_resnet, check_backbone
from boxless.detectors.fpn import feature_pyramid
from boxless.detectors.hybrid_encoder import HybridConfig, HybridEncoder
from boxless.detectors.norms import Norm as Norm
from boxless.detectors.norms import norm_layer as norm_layer
from boxless.detectors.roi_align import roi_align
from boxless.detectors.transformer import Transformer, TransformerConfig
from boxless.errors import UserError

Neck = Literal["fpn", "fpn_p3", "hybrid", "c4", "transformer", "none"]
WHOLE_BODY: tuple[Neck, ...] = ("fpn", "fpn_p3", "hybrid", "transformer", "none")
"""The necks of trunks whose body has its last stage; C4 makes that the box head."""


@dataclass(frozen=True)
class TrunkConfig:
    """Settings of a trunk."""

    backbone: str = "resnet50"
    """Backbone: resnet18, resnet34, resnet50, resnet101 (stride in the 3x3 convolution), mobilenet_v2 or swin_t, as in
    torchvision; or timm:NAME, any timm model with maps at strides 4 to 32, or a plain ViT with patches of 16 px."""
    norm: Norm = "batch"
    """Norm of FPN, box head and the body's batch norms: batch, sync (over all processes), frozen (running statistics)
    or group (32 groups); the body's layer norms stay."""
    neck: Neck = "fpn"
    """Neck on the body: fpn, a feature pyramid with RoI pooling and box head; fpn_p3, the pyramid alone, from P3 up;
    hybrid, RT-DETR's encoder with RoI pooling and box head; c4, RoI pooling from C4 with the ResNet's last stage as
    box head; transformer, DETR's; or none, for FCN."""
    fpn_channels: int = 256
    """Width of every pyramid level, RT-DETR's too."""
    fpn_norm: bool = True
    """Norms in the FPN, as SoCo has them; torchvision's, Detectron2's and MMDetection's COCO detectors have none."""
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc"
    """Box head on a pyramid: SoCo's (4 convolutions with norm, 1 linear layer) or torchvision's two linear layers."""
    box_head_width: int = 1024
    """Width of the box head's linear layers."""
    transformer: TransformerConfig = field(
        default=TransformerConfig(), metadata={"used_if": lambda trunk: trunk.neck == "transformer"}
    )
    """DETR's transformer."""
    hybrid: HybridConfig = field(default=HybridConfig(), metadata={"used_if": lambda trunk: trunk.neck == "hybrid"})
    """RT-DETR's hybrid encoder."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean that is subtracted from RGB in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation that RGB in 0..1 is divided by after that."""

    def __post_init__(self) -> None:
        check_backbone(self.backbone)


def with_neck(config: TrunkConfig, necks: Sequence[Neck]) -> TrunkConfig:
    """The trunk with its own neck if that is one of `necks`, else with the first of them."""
    return config if config.neck in necks else replace(config, neck=necks[0])


class RoIPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign with half-pixel alignment and adaptive sampling, as in SoCo and Detectron2's ROIAlignV2.

    torchvision's own pooling is unaligned with two samples a bin; a head that was pretrained on aligned features would
    meet shifted ones.

    Args:
        output_size: S, of the pooled S x S features.
        first: level of the finest map, at stride 2 ** first.
        last: level of the coarsest map.
        sampling: samples a side in each bin; 0: as many as there are cells.
    """

    def __init__(self, output_size: int = 7, first: int = 2, last: int = 5, sampling: int = 0) -> None:
        names = [str(number) for number in range(last - first + 1)]
        super().__init__(featmap_names=names, output_size=output_size, sampling_ratio=sampling)
        self.first, self.last = first, last

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool the boxes of a batch of padded images (torchvision's call): (R, C, S, S).

        Levels follow FPN's rule, floor(4 + log2(side / 224)).
        """
        images = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat(boxes)
        sides = (rois[:, 2:] - rois[:, :2]).clamp(min=0).prod(1).sqrt()
        levels = (4 + torch.log2(sides / 224 + 1e-6)).floor().clamp(self.first, self.last).long()
        height, width = x["0"].shape[-2:]  # padded to a multiple of 32, so that the strides are exact
        stride = 2**self.first
        return self.pool(x, torch.cat([images, rois], 1), levels, (stride * height, stride * width))

    def pool(self, features: dict[str, Tensor], rois: Tensor, levels: Tensor, frame: tuple[int, int]) -> Tensor:
        """Pool each box from its own level.

        Args:
            features: by torchvision's names, (B, C, h, w) each.
            rois: (R, 5), image index and xyxy in the frame; where they are on the CPU, nothing waits for the device.
            levels: (R,), beside them; if there is no map of a level, the nearest one is taken.
            frame: height and width of the images that the boxes live in, px. Boxes are scaled by each level's own size
                and not by 1 / stride: P5 of a 112 px view has 4 cells, not 3.5.

        Returns:
            (R, C, S, S) float32.
        """
        size, device = self.output_size, features["0"].device
        levels = levels.clamp(self.first, self.last)
        pooled = features["0"].new_zeros((rois.shape[0], features["0"].shape[1], *size), dtype=torch.float32)
        for number, name in enumerate(self.featmap_names, start=self.first):
            chosen = (levels == number).nonzero().squeeze(1)
            # What is traced for ONNX must hold for images with boxes on other levels.
            if not len(chosen) and not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
                continue
            feature = features[name].float()  # half precision rounds the sampling weights
            y, x = feature.shape[-2] / frame[0], feature.shape[-1] / frame[1]
            scaled = (rois[chosen] * rois.new_tensor([1, x, y, x, y])).to(device, non_blocking=True)
            aligned = roi_align(feature, scaled, size, self.sampling_ratio)
            # Not pooled[chosen] = aligned: traced with one box on a level, that is exported for just one box.
            pooled.index_copy_(0, chosen.to(device, non_blocking=True), aligned)
        return pooled


class Backbone(nn.Module):
    """Body and neck as torchvision's detectors take them: its BackboneWithFPN, but with any body.

    The neck takes the body's maps from number `first` on.
    """

    def __init__(self, body: Body, fpn: nn.Module, out_channels: int, first: int = 0) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels, self.first = body, fpn, out_channels, first

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps of images (B, 3, H, W) by torchvision's names, `out_channels` wide."""
        maps: dict[str, Tensor] = self.fpn(dict(list(self.body(image).items())[self.first :]))
        return maps


class LastStage(nn.Module):
    """The last stage of a ResNet as the box head of a C4 detector (layer4, Detectron2's res5)."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C, 7, 7)."""
        maps: Tensor = self.layer4(pooled)
        return maps

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled C4 (R, C, 14, 14) to (R, 2C), averaged over each box."""
        return self.maps(pooled).mean((2, 3))


class Trunk(nn.Module):
    """Body, neck and head, by the config's `neck`.

    fpn: `backbone.body` gives C2..C5, `backbone` gives P2..P5 and torchvision's extra `pool` level, `box_head` turns
    (R, C, 7, 7) into (R, head_width). fpn_p3: the body gives C2..C5, `backbone` P3..P5. c4: body and backbone give C4
    alone, named "0"; `box_head` turns (R, C, 14, 14) into (R, 2C). transformer: the body gives C2..C5 to `transformer`.
    none: body and backbone give C2..C5. hybrid: as fpn, but `backbone` gives P3..P5 alone, named from "0" on. fpn_p3,
    transformer and none have no RoI pooling and no box head.

    Raises:
        UserError: for a C4 trunk without a ResNet.
    """

    roi_pool: RoIPool
    box_head: nn.Module
    head_width: int
    transformer: Transformer

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        norm = norm_layer(config.norm)
        if config.neck == "c4":
            self._build_c4()
            return
        body = build_body(config.backbone, config.norm)
        widths = body.widths
        if config.neck == "none":
            self.backbone = Backbone(body, nn.Identity(), widths[-1])
        elif config.neck == "transformer":
            self.backbone = Backbone(body, nn.Identity(), widths[-1])
            self.transformer = Transformer(widths[-1], config.transformer)
        elif config.neck == "fpn_p3":
            fpn = feature_pyramid(body, config.fpn_channels, None, norm if config.fpn_norm else None, first=1)
            self.backbone = Backbone(body, fpn, config.fpn_channels, first=1)
        else:
            self._build_pyramid(body, norm)

    def _build_pyramid(self, body: Body, norm: Callable[[int], nn.Module]) -> None:
        channels, width = self.config.fpn_channels, self.config.box_head_width
        if self.config.neck == "hybrid":
            fpn: nn.Module = HybridEncoder(body.widths, channels, norm, self.config.hybrid)
            self.roi_pool = RoIPool(first=3)
        else:
            fpn = feature_pyramid(body, channels, LastLevelMaxPool(), norm if self.config.fpn_norm else None)
            self.roi_pool = RoIPool()
        self.backbone = Backbone(body, fpn, channels)
        self.head_width = width
        if self.config.box_head == "2fc":
            self.box_head = TwoMLPHead(channels * 49, width)
        else:
            self.box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [width], norm)

    def _build_c4(self) -> None:
        if self.config.backbone not in RESNETS:
            raise UserError(f"trunk.neck: c4 needs a ResNet, trunk.backbone is {self.config.backbone}; choose fpn")
        network = build_resnet(self.config.backbone, self.config.norm)
        body = ResNetBody(network, last=3)
        self.head_width = network.inplanes
        self.box_head = LastStage(network.layer4)
        self.backbone = Backbone(body, nn.Identity(), body.widths[-1])
        self.roi_pool = RoIPool(14, first=4, last=4)

    @property
    def body_width(self) -> int:
        """Channels of C5; raises as `body_widths` does."""
        return self.body_widths[-1]

    @property
    def body_widths(self) -> tuple[int, ...]:
        """Channels of C2..C5.

        Raises:
            UserError: if the body has no C5, in a C4 trunk.
        """
        if self.config.neck == "c4":
            raise UserError(
                "trunk.neck: c4; this method trains the whole backbone, of which c4 makes the last stage a head: "
                "pretrain with trunk.neck=fpn, its weights fill a C4 detector too"
            )
        return self.backbone.body.widths

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that reports speak of: backbone and, where there are such, FPN or hybrid encoder, RoI head and
        transformer."""
        body = {"backbone": self.backbone.body}
        if self.config.neck == "transformer":
            return {**body, "transformer": self.transformer}
        pyramid = {} if self.config.neck in ("c4", "none") else {self.pyramid_name: self.backbone.fpn}
        head = {"RoI head": self.box_head} if hasattr(self, "box_head") else {}  # not every detector uses it
        return {**body, **pyramid, **head}

    @property
    def pyramid_name(self) -> str:
        """Name of the pyramid in `parts`."""
        return "hybrid encoder" if self.config.neck == "hybrid" else "FPN"

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The body's modules in five steps from stem to last stage, which a C4 trunk has as its box head."""
        last = [[self.box_head.get_submodule("layer4")]] if self.config.neck == "c4" else []
        return [*self.backbone.body.stages, *last]

    def pyramid(self, image: Tensor) -> dict[str, Tensor]:
        """The maps that boxes are pooled from, by torchvision's names: P2..P5 of images (B, 3, H, W), P3..P5 or C4."""
        features: dict[str, Tensor] = self.backbone(image)
        return {name: features[name] for name in self.roi_pool.featmap_names}

    def normalize(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..1 as the network sees it."""
        mean = image.new_tensor(self.config.mean)[:, None, None]
        std = image.new_tensor(self.config.std)[:, None, None]
        return (image - mean) / std


def freeze(trunk: Trunk, stages: int) -> None:
    """Stop the first stages of the body from training: 1 is the stem, 2 adds layer1, ... 5 is the whole body.

    Their batch norms use and keep the running statistics that were loaded, as frozen ones do.
    """
    for stage in (module for modules in trunk.stages[:stages] for module in modules):
        for module in stage.requires_grad_(False).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(norm: nn.Module, _: object) -> None:
    norm.training = False  # whatever mode the whole detector was put in
