"""FCN (Long et al., 2015, arXiv:1411.4038) around a trunk: a class for every pixel, from a dilated ResNet.

Two networks, whose tables must not be mixed:

d8: OpenMMLab's FCN-R50-d8, of LC-loss's tables. The strides of the last two stages become dilation 2 and 4. The head
has two 3 x 3 convolutions of 512 channels, a third one over their output beside the input, dropout 0.1, and the
classifier; an auxiliary head on C4 (256 channels) has weight 0.4 in training. A stage's first block keeps the dilation
of the stage before it (their `contract_dilation`), as in torchvision's `replace_stride_with_dilation`: every fourth
place of C5 is then what it was without dilation.

16s: the FCN of MoCo (He et al., 2020, arXiv:1911.05722, appendix). The last stage has stride 1, and dilation 2 in all
of its 3 x 3 convolutions, so also in the first block's, where torchvision would have 1. The head has two 3 x 3
convolutions of 256 channels with dilation 6, and the classifier.

torchvision's own `FCNHead` has a single convolution and batch norms whatever the trunk has.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torchvision.ops import Conv2dNormActivation

from boxless.detectors.backbones import RESNETS
from boxless.detectors.detector import Targets
from boxless.detectors.trunk import Neck, Trunk, norm_layer
from boxless.errors import UserError

VOID = 255
"""Label of pixels without a class, which losses ignore."""


@dataclass(frozen=True)
class FCNConfig:
    """FCN's settings: the network, and how it reads an image at test time."""

    kind: Literal["fcn"] = "fcn"
    head: Literal["d8", "16s"] = "d8"
    """OpenMMLab's network at stride 8, or MoCo's at stride 16."""
    align_corners: bool = False
    """Enlarge maps corner to corner, as OpenMMLab does for crops of 769 px (Cityscapes), not for 512."""
    window: tuple[int, int] | None = None
    """Side and step, px, of windows whose logits are averaged at test (OpenMMLab's Cityscapes: 769, 513); by default
    the whole image at once."""

    necks: ClassVar[tuple[Neck, ...]] = ("none",)
    targets: ClassVar[Targets] = "classes"
    uses_box_head: ClassVar[bool] = False
    ignores: ClassVar[bool] = False
    sure: ClassVar[float] = 1.0  # it finds no boxes

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> "FCN":
        """FCN around a trunk; see `DetectorConfig`."""
        return FCN(trunk, classes, self)


class FCN(nn.Module):
    """A semantic segmenter, called as torchvision's detectors are.

    Args:
        trunk: with `neck="none"` and a ResNet, whose strides are changed in place.
        classes: with background, if that is one.
        config: which FCN.

    Raises:
        UserError: for a body that is no ResNet.
    """

    def __init__(self, trunk: Trunk, classes: int, config: FCNConfig) -> None:
        super().__init__()
        if trunk.config.backbone not in RESNETS:
            raise UserError(
                f"trunk.backbone: {trunk.config.backbone}; detector.kind=fcn dilates a ResNet: {', '.join(RESNETS)}"
            )
        self.config, self.normalize, self.backbone = config, trunk.normalize, trunk.backbone
        layer3, layer4 = (trunk.backbone.body.get_submodule(name) for name in ("layer3", "layer4"))
        *_, c4, c5 = trunk.body_widths
        norm = partial(Conv2dNormActivation, norm_layer=norm_layer(trunk.config.norm))
        self.auxiliary: nn.Module | None = None
        if config.head == "d8":
            dilate(layer3, 1, 2)
            dilate(layer4, 2, 4)
            self.head: nn.Module = _Concatenated(c5, 512, classes, norm)
            self.auxiliary = nn.Sequential(norm(c4, 256, 3), nn.Dropout2d(0.1), nn.Conv2d(256, classes, 1))
        else:
            dilate(layer4, 2, 2)
            convolutions = norm(c5, 256, 3, dilation=6), norm(256, 256, 3, dilation=6)
            self.head = nn.Sequential(*convolutions, nn.Conv2d(256, classes, 1))
        for part in (self.head, self.auxiliary):
            _initialise(part)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> object:
        """Losses in training, else classes and logits.

        Args:
            images: (3, H, W) each, RGB in 0..1.
            targets: `classes` (H, W) each, 0-based, 255 where a pixel has none.

        Returns:
            In training "loss_classes" and, of d8, "loss_auxiliary": cross-entropy, averaged over all pixels, void ones
            counting 0, as in OpenMMLab (MoCo does not say). Else for each image `classes` (H, W) int64 and `logits`
            (C, H, W) float32.
        """
        if self.training:
            assert targets is not None
            return self._losses(images, [target["classes"] for target in targets])
        found = [self._windows(self.normalize(image)[None]) for image in images]  # one by one: none sees padding
        return [{"classes": logits.argmax(1)[0], "logits": logits[0]} for logits in found]

    def _losses(self, images: list[Tensor], classes: list[Tensor]) -> dict[str, Tensor]:
        height, width = (max(image.shape[side] for image in images) for side in (1, 2))
        rims = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        batch = torch.stack([pad(self.normalize(image), rim) for image, rim in zip(images, rims, strict=True)])
        truth = torch.stack([pad(each, rim, value=VOID) for each, rim in zip(classes, rims, strict=True)]).long()
        maps = self.backbone(batch)
        losses = {"loss_classes": self._loss(self.head(maps["3"]), truth)}
        if self.auxiliary is not None:
            losses["loss_auxiliary"] = 0.4 * self._loss(self.auxiliary(maps["2"]), truth)
        return losses

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        height, width = truth.shape[-2:]
        total = cross_entropy(self._enlarged(logits, height, width), truth, ignore_index=VOID, reduction="sum")
        return total / truth.numel()

    def _enlarged(self, logits: Tensor, height: int, width: int) -> Tensor:
        size = (height, width)
        return interpolate(logits.float(), size, mode="bilinear", align_corners=self.config.align_corners)

    def _windows(self, image: Tensor) -> Tensor:
        """Logits (1, C, H, W) of an image (1, 3, H, W)."""
        height, width = image.shape[-2:]
        side, step = self.config.window or (max(height, width),) * 2
        total = count = image.new_zeros(())
        for top in starts(height, side, step):
            for left in starts(width, side, step):
                part = image[..., top : top + side, left : left + side]
                logits = self._enlarged(self.head(self.backbone(part)["3"]), *part.shape[-2:])
                rim = (left, width - left - part.shape[-1], top, height - top - part.shape[-2])
                total = total + pad(logits, rim)
                count = count + pad(torch.ones_like(logits[:, :1]), rim)
        return total / count


def starts(length: int, side: int, step: int) -> list[int]:
    """Starts of windows along a length, px; the last one ends with it (mmseg, `slide_inference`)."""
    count = max(length - side + step - 1, 0) // step + 1
    return [max(min(number * step, length - side), 0) for number in range(count)]


def dilate(stage: nn.Module, first: int, rest: int) -> None:
    """Turn the stride of a ResNet's stage into dilation, in place.

    Args:
        stage: stage of torchvision's ResNet, whose first block has stride 2.
        first: dilation of the 3 x 3 convolution that has the stride.
        rest: dilation of all convolutions after it.
    """
    dilation = first
    for convolution in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
        had_stride = convolution.stride != (1, 1)
        convolution.stride = (1, 1)
        if convolution.kernel_size == (3, 3):
            convolution.dilation = convolution.padding = (dilation, dilation)
            dilation = rest if had_stride else dilation


class _Concatenated(nn.Module):
    """OpenMMLab's FCN head: two convolutions, a third that sees the input beside their output, the classifier."""

    def __init__(
        self, inputs: int, width: int, classes: int, convolution: type[nn.Module] | partial[nn.Module]
    ) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(inputs, width, 3), convolution(width, width, 3))
        self.both = convolution(inputs + width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """C5 (B, C, h, w) to logits (B, classes, h, w)."""
        logits: Tensor = self.classifier(self.both(torch.cat([maps, self.convolutions(maps)], 1)))
        return logits


def _initialise(head: nn.Module | None) -> None:
    """Initialise as OpenMMLab does: Kaiming before a ReLU, a normal distribution of 0.01 for the classifier."""
    for module in head.modules() if head is not None else ():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
