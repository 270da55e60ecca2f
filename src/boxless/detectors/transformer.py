"""DETR's transformer (Carion et al., 2020, arXiv:2005.12872): what DETR has between its backbone and its class layer.

Its layers are those of Hugging Face's `transformers`, under the names of its `DetrModel`. They are called one by one
here, because UP-DETR gives each image its own queries and a mask over them, which `DetrModel` does not take, and
because its `auxiliary_loss` norms what the next decoder layer gets, which the authors' code does not do.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from boxless.errors import UserError


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of DETR's transformer; the defaults are the paper's (section A.4)."""

    width: int = 256
    """Width of queries and image features inside the transformer."""
    heads: int = 8
    """Attention heads; they divide the width, and the width is even."""
    encoder_layers: int = 6
    """Layers over the image's cells."""
    decoder_layers: int = 6
    """Layers over the queries."""
    feedforward: int = 2048
    """Width inside each layer's two linear layers."""
    dropout: float = 0.1
    """Dropout of attention and linear layers."""
    queries: int = 100
    """N, the most objects that can be found in an image."""


class Transformer(nn.Module):
    """From a backbone's last feature map to a state per query and decoder layer, and from states to boxes.

    Raises:
        UserError: if `transformers` is not installed, or the sizes do not go together.
    """

    def __init__(self, channels: int, config: TransformerConfig) -> None:
        super().__init__()
        if config.width % (2 * config.heads):
            raise UserError(
                f"trunk.transformer.width: {config.width}; expected a multiple of twice the {config.heads} heads"
            )
        detr, settings = library(config)
        self.config = config
        self.input_projection = nn.Conv2d(channels, config.width, 1)
        self.position_embedding = detr.DetrSinePositionEmbedding(config.width // 2, normalize=True)
        self.query_position_embeddings = nn.Embedding(config.queries, config.width)
        self.encoder = detr.DetrEncoder(settings)
        self.decoder = detr.DetrDecoder(settings)
        self.bbox_predictor = detr.DetrMLPPredictionHead(config.width, config.width, 4, num_layers=3)
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)  # as in the paper; the library's own start is BERT's

    def forward(
        self, features: Tensor, seen: Tensor, queries: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        """The state of each query after each decoder layer.

        Args:
            features: (B, C, h, w), the backbone's last feature map.
            seen: (B, h, w), which cells are not padding.
            queries: (B, N, width) or (N, width); by default the learned ones.
            groups: (N,), queries of different groups do not see each other; by default all do.

        Returns:
            (decoder layers, B, N, width), normed.
        """
        places = self.position_embedding(features.shape, features.device, _full(features), seen)
        places = places.flatten(2).transpose(1, 2)  # (B, hw, width)
        memory = self.input_projection(features).flatten(2).transpose(1, 2)
        seen = seen.flatten(1)[:, None, None]  # (B, 1, 1, hw): the same for all heads and queries
        for layer in self.encoder.layers:
            memory = layer(memory, seen, spatial_position_embeddings=places)

        queries = self.query_position_embeddings.weight if queries is None else queries
        queries = queries.expand(len(features), -1, -1)
        among = None if groups is None else (groups[:, None] == groups)[None, None]  # (1, 1, N, N)
        state = torch.zeros_like(queries)  # DETR's queries are positions; what they hold starts from nothing
        states = []
        for layer in self.decoder.layers:
            state = layer(state, among, places, queries, memory, encoder_attention_mask=seen)
            states.append(self.decoder.layernorm(state))
        return torch.stack(states)

    def boxes(self, states: Tensor) -> Tensor:
        """The box that each state (..., width) points at: (..., 4), cxcywh as shares of the image's sides, 0..1."""
        boxes: Tensor = self.bbox_predictor(states)
        return boxes.to(_full(boxes)).sigmoid()


def _full(values: Tensor) -> torch.dtype:
    """At least float32: with 16 bits a box would be off by whole pixels."""
    return torch.promote_types(values.dtype, torch.float32)


def library(config: TransformerConfig, **more: Any) -> tuple[Any, Any]:
    """Hugging Face's module of DETR and a configuration of it; imported late, because it is large and optional.

    Raises:
        UserError: if it is not installed.
    """
    try:
        from transformers import DetrConfig, ResNetConfig
        from transformers.models.detr import modeling_detr
    except ImportError:
        raise UserError(
            "trunk.neck: transformer needs Hugging Face's transformers; install it with pip install 'boxless[detr]'"
        ) from None
    settings = DetrConfig(
        # The default may ask for timm; without one of its own no backbone is ever built from it.
        backbone_config=more.pop("backbone_config", None) or ResNetConfig(),
        d_model=config.width,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.feedforward,
        decoder_ffn_dim=config.feedforward,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        num_queries=config.queries,
        **more,
    )
    return modeling_detr, settings
