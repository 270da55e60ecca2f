"""The names of DETR's and UP-DETR's own files (github.com/facebookresearch/detr, dddzg/up-detr).

Their attention has one matrix for queries, keys and values; boxless has Hugging Face's modules, with three.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from boxless.interop.names import Tensors

_NAMES = (
    (r"transformer\.decoder\.norm\.", "transformer.decoder.layernorm."),
    (r"multihead_attn\.", "encoder_attn."),
    (r"out_proj\.", "o_proj."),
    (r"linear([12])\.", r"mlp.fc\1."),
    (r"(encoder\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"norm1\.", "self_attn_layer_norm."),
    (r"norm2\.", "encoder_attn_layer_norm."),
    (r"norm3\.", "final_layer_norm."),
    (r"^input_proj\.", "transformer.input_projection."),
    (r"^query_embed\.", "transformer.query_position_embeddings."),
    (r"^bbox_embed\.", "transformer.bbox_predictor."),
)


def from_authors(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors of the transformer around a body, in boxless' names, without its classes.

    Args:
        tensors: keys such as transformer.encoder.layers.0.self_attn.in_proj_weight, input_proj.weight.
    """
    result: Tensors = {}
    for key, value in tensors.items():
        if not key.startswith(("transformer.", "input_proj.", "query_embed.", "bbox_embed.")):
            continue
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        stem, whole, kind = key.partition("in_proj_")
        if not whole:
            result[key] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            result[f"{stem}{part}_proj.{kind}"] = rows
    return result
