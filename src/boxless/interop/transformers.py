"""DETR and RT-DETRv2 as folders that Hugging Face's `transformers` loads, and the names in them.

Both libraries share the modules of transformer, hybrid encoder and decoder. The body is their `ResNet`, which is
torchvision's by other names (stride in the 3x3 convolution).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxless.detectors.detector import DetectorConfig
from boxless.detectors.detr import DETRConfig
from boxless.detectors.hybrid_encoder import library as rt_detr_library
from boxless.detectors.rt_detr import RTDETRConfig
from boxless.detectors.transformer import library as detr_library
from boxless.detectors.trunk import TrunkConfig
from boxless.interop.exported import OPENED, Exported, names, resized
from boxless.interop.names import Tensors, resnet_modules

_BODY = "model.backbone.model."
"""Prefix of the body's names in detectors as written now; a file's own prefix is read from its keys."""
_STEM = "embedder.embedder.convolution.weight"

_PARTS = {
    "transformer.bbox_predictor.": "bbox_predictor.",
    "transformer.": "model.",
    "backbone.fpn.": "model.",
    "rt_detr.": "model.",
}


def from_torchvision(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of boxless' DETR or RT-DETR, in the library's names."""
    modules = {f"backbone.body.{name}": _BODY + _body(name) for name in resnet_modules()}

    def name(key: str) -> str:
        module, _, last = key.rpartition(".")
        if module in modules:
            return f"{modules[module]}.{last}"
        begin = next((begin for begin in _PARTS if key.startswith(begin)), "")
        return _PARTS.get(begin, "") + key.removeprefix(begin)

    return {name(key): value for key, value in tensors.items()}


def to_torchvision(tensors: Mapping[str, Tensor]) -> Tensors:
    """A body, DETR or RT-DETR of the library in boxless' names."""
    begin = next(key for key in tensors if key.endswith(_STEM)).removesuffix(_STEM)
    back = {begin + _body(name): f"backbone.body.{name}" for name in resnet_modules()}
    hybrid = any(key.startswith("model.encoder_input_proj.") for key in tensors)

    def name(key: str) -> str:
        module, _, last = key.rpartition(".")
        if module in back:
            return f"{back[module]}.{last}"
        if key.startswith("bbox_predictor."):
            return f"transformer.{key}"
        if not key.startswith("model."):
            return key
        key = _as_in_memory(key.removeprefix("model."))
        encoder = hybrid and key.startswith(("encoder.", "encoder_input_proj."))
        return ("backbone.fpn." if encoder else "rt_detr." if hybrid else "transformer.") + key

    return {name(key): value for key, value in tensors.items() if not key.startswith(("class_embed.", "bbox_embed."))}


def recognised(tensors: Tensors, around: str) -> tuple[str, Tensors] | None:
    """See `layouts.Project`: by the names of the library's ResNet."""
    if not any(key.endswith(_STEM) for key in tensors):
        return None
    return "Hugging Face transformers (embedder.*, encoder.stages.*)", to_torchvision(tensors)


def save(folder: Path, tensors: Mapping[str, Tensor], export: Exported) -> int:
    """Write a folder for `from_pretrained`: configuration, weights, and the image processor's settings.

    Args:
        folder: exists.
        tensors: tensors of the detector, in boxless' names.
        export: facts of a run of one of `MODELS` on a ResNet.

    Returns:
        The number of tensors.
    """
    assert export.detector is not None
    _, make = MODELS[type(export.detector)]
    model = make(export.trunk, export.detector, export.classes)
    processor = _processor(export)
    own, given = model.state_dict(), from_torchvision(tensors)
    given |= {key: torch.tensor(0) for key in own if key.endswith("num_batches_tracked") and key not in given}
    given |= {key: given[source] for key, source in _twice(own, given).items()}
    model.load_state_dict({key: value for key, value in given.items() if key in own})
    _save_quietly(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    return len(own)


def _save_quietly(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    library: Any = logging
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    model.save_pretrained(folder)
    if shown:
        library.enable_progress_bar()


def how_to_load(export: Exported) -> str:
    """The lines of Python that load the folder there and find objects in an image."""
    detector = export.detector
    assert isinstance(detector, DETRConfig | RTDETRConfig)
    name, _ = MODELS[type(detector)]
    if isinstance(detector, DETRConfig):
        seen = [
            "    mask = torch.zeros(1, *pixels.shape[2:], dtype=torch.long)",
            "    mask[:, :height, :width] = 1",
            "    outputs = model(pixel_values=pixels, pixel_mask=mask)",
            "    frame = (image.height, image.width)",
        ]
    else:
        seen = [
            "    outputs = model(pixel_values=pixels)",
            "    # Its boxes are shares of the padded image, whose sides these are in px of the image as it is.",
            "    frame = [pixels.shape[2] * image.height / height, pixels.shape[3] * image.width / width]",
        ]
    return "\n".join(
        [
            "import torch",
            "from PIL import Image, ImageOps",
            f"from transformers import AutoImageProcessor, {name}ForObjectDetection",
            "",
            f"processor = AutoImageProcessor.from_pretrained({export.file!r})",
            f"model = {name}ForObjectDetection.from_pretrained({export.file!r}).eval()",
            names(export.classes, background=False),
            "",
            "",
            "@torch.no_grad()",
            "def detect(path):  # boxes (px), scores, labels: classes[label] is a name",
            OPENED,
            *resized(export.sizes),
            '    pixels = processor(small, do_resize=False, do_pad=False, return_tensors="pt")["pixel_values"]',
            "    height, width = pixels.shape[2:]",
            "    # The network takes sides that are multiples of 32; an image keeps its shape and is padded to them.",
            "    pixels = torch.nn.functional.pad(pixels, (0, -width % 32, 0, -height % 32))",
            *seen,
            f"    found = processor.post_process_object_detection(outputs, {detector.score_threshold}, [frame])[0]",
            f'    best = found["scores"].argsort(descending=True)[:{detector.detections}]',
            "    found = {key: value[best] for key, value in found.items()}",
            "    limits = torch.tensor([image.width, image.height] * 2)",
            '    found["boxes"] = torch.minimum(found["boxes"].clamp(min=0), limits)',
            "    return found",
        ]
    )


def _as_in_memory(key: str) -> str:
    """The library writes files in the names of its earlier versions."""
    key = re.sub(r"layers\.(\d+)\.fc", r"layers.\1.mlp.fc", key)
    return key.replace(".out_proj.", ".o_proj.").replace("encoder.encoder.", "encoder.aifi.")


def _body(name: str) -> str:
    """torchvision's layer1.0.bn2 is encoder.stages.0.layers.0.layer.1.normalization."""
    kind = "convolution" if "conv" in name or name.endswith("downsample.0") else "normalization"
    if not name.startswith("layer"):
        return f"embedder.embedder.{kind}"
    stage, block, part = name.split(".", 2)
    place = "shortcut" if part.startswith("downsample") else f"layer.{int(re.sub(r'[a-z]', '', part)) - 1}"
    return f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{place}.{kind}"


def _resnet(trunk: TrunkConfig, maps: Sequence[int]) -> Any:
    from transformers import ResNetConfig

    depths = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}
    basic = trunk.backbone in ("resnet18", "resnet34")
    config: Any = ResNetConfig  # its type knows nothing of maps
    return config(
        depths=depths[trunk.backbone],
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        layer_type="basic" if basic else "bottleneck",
        out_indices=list(maps),
    )


def _detr(trunk: TrunkConfig, detector: DETRConfig, classes: Sequence[str]) -> Any:
    more = {"backbone_config": _resnet(trunk, (1, 2, 3, 4)), "eos_coefficient": detector.no_object, **_labels(classes)}
    detr, settings = detr_library(trunk.transformer, **more)
    return detr.DetrForObjectDetection(settings)


def _rt_detr(trunk: TrunkConfig, detector: RTDETRConfig, classes: Sequence[str]) -> Any:
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    _, settings = rt_detr_library(
        trunk.fpn_channels,
        trunk.hybrid,
        num_queries=detector.queries,
        decoder_layers=detector.layers,
        num_denoising=detector.denoising,
    )
    body = _resnet(trunk, (2, 3, 4))
    plain = {**settings.to_dict(), **_labels(classes), "backbone_config": body, "freeze_backbone_batch_norms": False}
    plain["encoder_in_channels"] = body.hidden_sizes[1:]
    return RTDetrV2ForObjectDetection(RTDetrV2Config(**plain))


Maker = Callable[..., Any]
MODELS: dict[type[DetectorConfig], tuple[str, Maker]] = {
    DETRConfig: ("Detr", _detr),
    RTDETRConfig: ("RTDetrV2", _rt_detr),
}
"""The detectors that the library has: the beginning of its classes' names, and what makes the model."""


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: k for k, name in enumerate(classes)}}


def _processor(export: Exported) -> dict[str, Any]:
    """Settings of the library's processor, which keeps an image's shape as training did."""
    detr = isinstance(export.detector, DETRConfig)
    return {
        "image_processor_type": "DetrImageProcessor" if detr else "RTDetrImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": detr,
        "size": {"shortest_edge": export.sizes[0], "longest_edge": export.sizes[1]},
        "image_mean": list(export.trunk.mean),
        "image_std": list(export.trunk.std),
    }


def _twice(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """RT-DETR's classifiers have a second name outside of the decoder."""
    return {key: f"model.decoder.{key}" for key in own if key not in given and f"model.decoder.{key}" in given}
