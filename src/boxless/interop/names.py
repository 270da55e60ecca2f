"""Renaming tensors by a table of modules, and putting the rows of classes in another library's order.

torchvision counts background as class 0; Detectron2 and MMDetection have it last in the scores and have no boxes and no
masks of it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

BLOCKS = 36
"""More than any ResNet has in a stage."""


def renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> tuple[Tensors, tuple[str, ...]]:
    """Tensors whose module is in the table, under the module's other name; and the keys of those that are not."""
    places = {key: key.rpartition(".") for key in tensors}
    found = {f"{table[module]}.{name}": tensors[key] for key, (module, _, name) in places.items() if module in table}
    return found, tuple(key for key, (module, _, _) in places.items() if module not in table)


def without(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors behind a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def resnet_modules() -> list[str]:
    """torchvision's names of every convolution and norm that a ResNet may have."""
    names = ["conv1", "bn1"]
    for layer in (1, 2, 3, 4):
        for block in range(BLOCKS):
            own = [f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "bn")]
            names += [f"layer{layer}.{block}.{part}" for part in (*own, "downsample.0", "downsample.1")]
    return names


def background_last(tensors: Mapping[str, Tensor]) -> Tensors:
    """Convert a two-stage detector in torchvision's names: scores with background last, boxes and masks without it."""
    return _by_end(
        tensors,
        {
            "box_predictor.cls_score": lambda rows: rows.roll(-1, 0),
            "box_predictor.bbox_pred": lambda rows: rows[4:],
            "mask_predictor.mask_fcn_logits": lambda rows: rows[1:],
        },
    )


def background_first(tensors: Mapping[str, Tensor]) -> Tensors:
    """The way back; background's boxes and masks, which nothing looks at, become zeros."""
    return _by_end(
        tensors,
        {
            "box_predictor.cls_score": lambda rows: rows.roll(1, 0),
            "box_predictor.bbox_pred": lambda rows: torch.cat([torch.zeros_like(rows[:4]), rows]),
            "mask_predictor.mask_fcn_logits": lambda rows: torch.cat([torch.zeros_like(rows[:1]), rows]),
        },
    )


def _by_end(tensors: Mapping[str, Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensors:
    def changed(key: str, value: Tensor) -> Tensor:
        module = key.rpartition(".")[0]
        change = next((change for end, change in changes.items() if module.endswith(end)), None)
        return value if change is None else change(value)

    return {key: changed(key, value) for key, value in tensors.items()}
