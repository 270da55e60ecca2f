"""RT-DETRv2 (Zhao et al., 2023, arXiv:2304.08069; Lv et al., 2024, arXiv:2407.17140) around a trunk with its neck.

The most confident cells of P3..P5 become queries, which a decoder moves layer by layer; in training, noisy copies of
the objects are queries too. There is no NMS. Decoder, choice of queries and losses are those of Hugging Face's
`transformers`, as wide as the trunk's pyramid: 256, as in all of the authors' models but the largest.

Departures from the authors' code (github.com/lyuwenyu/RT-DETR): ResNets are torchvision's and not of variant d, with
the trunk's norms; images keep their shape and are padded; training changes no colours, crops no windows out of images
and shrinks none into a larger frame; there is no moving average of the weights; as in the library, no layer learns from
where the next one goes.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import _topk_min
from torchvision.ops import box_convert

from boxless.detectors.criterion import Objects
from boxless.detectors.detector import BoxDetectorConfig, NormalizeAndPad, frames, surest_pairs
from boxless.detectors.hybrid_encoder import begin_anew, library
from boxless.detectors.trunk import Neck, Trunk, norm_layer

PRIOR = 0.01
"""Score of every class at the start (focal loss)."""
PARTS = {"loss_vfl": "loss_classes", "loss_bbox": "loss_l1", "loss_giou": "loss_giou"}
"""The library's names of the losses, and those that they have here."""


@dataclass(frozen=True)
class RTDETRConfig(BoxDetectorConfig):
    """RT-DETR's settings behind the trunk's hybrid encoder; the defaults are the paper's on ResNet-50."""

    kind: Literal["rt_detr"] = "rt_detr"
    queries: int = 300
    """Queries, chosen among an image's cells: the most objects that can be found."""
    layers: int = 6
    """Decoder layers (on ResNet-18: 3)."""
    denoising: int = 100
    """Noisy copies of an image's objects in training, with good boxes, and as many with bad ones; 0 for none."""

    necks: ClassVar[tuple[Neck, ...]] = ("hybrid",)

    def build(self, trunk: Trunk, classes: int, keypoints: int = 0) -> "RTDETR":
        """RT-DETR around a trunk; see `DetectorConfig`."""
        return RTDETR(trunk, classes, self)


class RTDETR(nn.Module):
    """RT-DETRv2, called as torchvision's detectors are.

    Args:
        trunk: with `neck="hybrid"`; its backbone becomes the detector's (not a copy).
        classes: without background; labels are 1..classes.
        config: its settings.
    """

    def __init__(self, trunk: Trunk, classes: int, config: RTDETRConfig) -> None:
        super().__init__()
        self.config = config
        self.score_thresh = config.score_threshold  # the name that torchvision has
        self.backbone = trunk.backbone
        self.rt_detr = build_decoder(trunk, classes, config)
        self.transform = NormalizeAndPad(trunk)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses of images (3, H, W) in 0..1 with their targets in training; else what is found in each.

        Args:
            images: at their final size.
            targets: boxes (T, 4) in px and labels (T,) from 1.

        Returns:
            loss_classes, loss_l1, loss_giou and, with noisy copies, loss_denoising; or per image boxes (D, 4) in px,
            scores (D,), labels (D,) from 1.
        """
        batch, _ = self.transform(images)
        frame = frames([batch.tensors.shape[-2:]], batch.tensors.device)  # padding included: no map is masked
        maps = list(self.backbone(batch.tensors).values())
        if not self.training:
            outputs = self.decoded(maps)
            corners = box_convert(outputs.intermediate_reference_points[:, -1] * frame, "cxcywh", "xyxy")
            found = zip(outputs.intermediate_logits[:, -1], corners, batch.image_sizes, strict=True)
            return [surest_pairs(*one, self.config.detections, self.score_thresh) for one in found]
        assert targets is not None, "training needs targets"
        objects = Objects.of(targets, frame.expand(len(images), -1), "cxcywh")
        labels = [
            {"class_labels": labels[there], "boxes": boxes[there]}
            for labels, boxes, there in zip(*objects, strict=True)
        ]
        return self._losses(self.decoded(maps, labels), labels, objects.mean_count())

    def decoded(self, maps: list[Tensor], labels: list[dict[str, Tensor]] | None = None) -> Any:
        """The library's `RTDetrV2ModelOutput` of P3..P5; boxes are cxcywh as shares of the padded batch's sides.

        Args:
            maps: (B, C, h, w) each.
            labels: for noisy copies, per image `class_labels` (T,) from 0 and `boxes` (T, 4), as shares too.
        """
        from transformers.modeling_outputs import BaseModelOutput

        # An image may have fewer cells than queries are asked for.
        cells = torch.cat([one[0, 0].flatten() for one in maps])
        count = _topk_min(cells, self.config.queries, 0)
        object.__setattr__(
            self.rt_detr.config, "num_queries", count
        )  # traced for ONNX a tensor, which its check refuses
        with torch.autocast(maps[0].device.type, enabled=False):  # with 16 bits a box would be off by whole pixels
            levels: Any = [one.float() for one in maps]
            encoded = BaseModelOutput(last_hidden_state=levels)
            return self.rt_detr(None, inputs_embeds=maps[0], encoder_outputs=encoded, labels=labels)

    def _losses(self, outputs: Any, labels: list[dict[str, Tensor]], count: Tensor) -> dict[str, Tensor]:
        terms = losses(outputs, labels, self.rt_detr.config)
        # The library divides by this process's objects; all must divide by the same number.
        share = max(1, sum(len(one["boxes"]) for one in labels)) / count
        if self.config.denoising:  # where there are no objects, distributed training waits for this gradient too
            nothing = 0 * self.rt_detr.denoising_class_embed.weight.sum()
            terms["loss_denoising"] = terms.get("loss_denoising", 0) + nothing
        return {name: share * term for name, term in terms.items()}


def build_decoder(trunk: Trunk, classes: int, config: RTDETRConfig) -> Any:
    """Hugging Face's `RTDetrV2Model` from behind the encoder on, started as in the authors' code."""
    channels = trunk.config.fpn_channels
    modeling, settings = library(
        channels,
        trunk.config.hybrid,
        num_labels=classes,
        num_queries=config.queries,
        decoder_layers=config.layers,
        num_denoising=config.denoising,
    )
    model = modeling.RTDetrV2ForObjectDetection(settings).model
    del model.backbone, model.encoder_input_proj, model.encoder
    begin_anew(model, norm_layer(trunk.config.norm))
    for module in model.modules():
        if isinstance(module, modeling.RTDetrV2MultiscaleDeformableAttention):
            model._init_weights(module)  # here the library's start is the authors'
    for scores in (model.enc_score_head, *model.decoder.class_embed):
        nn.init.constant_(scores.bias, -math.log((1 - PRIOR) / PRIOR))
    for boxes in (model.enc_bbox_head, *model.decoder.bbox_embed):
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
    for layer in (model.enc_output[0], *model.decoder.query_pos_head.layers, *(p[0] for p in model.decoder_input_proj)):
        nn.init.xavier_uniform_(layer.weight)
    return model


def losses(outputs: Any, labels: list[dict[str, Tensor]], settings: Any) -> dict[str, Tensor]:
    """The library's losses, weighted as in the paper, each summed over the layers and the choice of queries.

    Args:
        outputs: `RTDetrV2ModelOutput` of the same images.
        labels: as in `RTDETR.decoded`.
        settings: `RTDetrV2Config`.

    Returns:
        loss_classes, loss_l1, loss_giou and, if there are noisy copies, loss_denoising, which is all three of them.
    """
    from transformers.loss.loss_rt_detr import RTDetrLoss

    logits, boxes, meta = (
        outputs.intermediate_logits,  # (B, L, N, classes)
        outputs.intermediate_reference_points,  # (B, L, N, 4)
        outputs.denoising_meta_values,
    )
    if not (logits.isfinite().all() and boxes.isfinite().all()):
        # The library would fail here; the loop stops a network that has diverged at its loss, with a better message.
        return dict.fromkeys(PARTS.values(), math.nan * boxes.sum())
    given: dict[str, Any] = {}
    if meta is not None:
        split = meta["dn_num_split"]
        (noisy_logits, logits), (noisy_boxes, boxes) = logits.split(split, 2), boxes.split(split, 2)
        given = {"dn_auxiliary_outputs": _layers(noisy_logits, noisy_boxes), "denoising_meta_values": meta}
    *others, last = _layers(logits, boxes)
    chosen = {"logits": outputs.enc_topk_logits, "pred_boxes": outputs.enc_topk_bboxes}
    criterion: Any = RTDetrLoss(settings)  # type: ignore[no-untyped-call]
    if not any(len(one["boxes"]) for one in labels):
        criterion.matcher = _match_none  # the library's cannot do without any object
    terms = criterion({**last, "auxiliary_outputs": [*others, chosen], **given}, labels)
    result: dict[str, Tensor] = {}
    for key, value in terms.items():
        name = "loss_denoising" if "_dn_" in key else next(PARTS[part] for part in PARTS if key.startswith(part))
        result[name] = result[name] + value if name in result else value
    return result


def _layers(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    pairs = zip(logits.unbind(1), boxes.unbind(1), strict=True)
    return [{"logits": scores, "pred_boxes": places} for scores, places in pairs]


class _MatchNone(nn.Module):
    """The matching of a batch without objects."""

    def forward(self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        none = torch.zeros(0, dtype=torch.int64)
        return [(none, none)] * len(labels)


_match_none = _MatchNone()
