"""DETR's transformer against Hugging Face's own DetrModel, and what its masks must hide."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from boxless.detectors.transformer import Transformer, TransformerConfig, library
from boxless.errors import UserError

CONFIG = TransformerConfig(16, heads=2, encoder_layers=2, decoder_layers=2, feedforward=24, queries=7)


@pytest.fixture
def transformer() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(5, CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # no norm at its start, no bias at 0
    return made


def maps(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Feature maps of 4 x 6 cells, of which only the first rows and columns are no padding."""
    seen = torch.zeros(len(sizes), 4, 6, dtype=torch.bool)
    for image, (rows, columns) in enumerate(sizes):
        seen[image, :rows, :columns] = True
    return torch.randn(len(sizes), 5, 4, 6), seen


def test_states_are_those_of_transformers_own_detr(transformer: Transformer) -> None:
    features, seen = maps((4, 6), (3, 2))
    detr, settings = library(CONFIG)
    settings.backbone_config.update(
        {"hidden_sizes": [4, 4, 4, 5], "depths": [1] * 4, "embedding_size": 4, "layer_type": "basic"}
    )
    reference = detr.DetrModel(settings).eval()
    ours = {key: value for key, value in transformer.state_dict().items() if not key.startswith("bbox_predictor")}
    report = reference.load_state_dict(ours, strict=False)
    assert not report.unexpected_keys and all(key.startswith("backbone.") for key in report.missing_keys)
    reference.backbone = Constant(features, seen)
    with torch.no_grad():
        expected = reference(torch.zeros(2, 3, 8, 8)).last_hidden_state
        torch.testing.assert_close(transformer(features, seen)[-1], expected, atol=1e-5, rtol=1e-5)


class Constant(nn.Module):
    """A backbone that gives what it was told."""

    def __init__(self, features: Tensor, seen: Tensor) -> None:
        super().__init__()
        self.answer = [(features, seen)]
        self.config = SimpleNamespace()

    def forward(self, *_: Tensor) -> list[tuple[Tensor, Tensor]]:
        return self.answer


def test_padding_is_not_looked_at(transformer: Transformer) -> None:
    features, seen = maps((4, 6), (3, 2))
    other = torch.where(seen[:, None], features, 100.0)
    with torch.no_grad():
        torch.testing.assert_close(transformer(other, seen), transformer(features, seen))


@pytest.mark.parametrize("group", [[0, 0, 0, 1, 1, 2, 2], [0] * 7, list(range(7))])
def test_queries_of_other_groups_are_not_looked_at(transformer: Transformer, group: list[int]) -> None:
    features, seen = maps((4, 6))
    groups, queries = torch.tensor(group), torch.randn(1, 7, 16)
    changed = queries.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        before, after = transformer(features, seen, queries, groups), transformer(features, seen, changed, groups)
    moved = ((before - after).abs().amax((0, 1, 3)) > 1e-6).tolist()
    assert moved == [number == group[0] for number in group]


def test_every_layer_is_normed_and_boxes_are_shares(transformer: Transformer) -> None:
    with torch.no_grad():
        states = transformer(*maps((4, 6), (1, 1)))
        boxes = transformer.boxes(states)
    assert states.shape == (2, 2, 7, 16) and boxes.shape == (2, 2, 7, 4)
    norm = transformer.decoder.layernorm
    whitened = (states - norm.bias) / norm.weight
    torch.testing.assert_close(whitened.mean(-1), torch.zeros(2, 2, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(whitened.var(-1, correction=0), torch.ones(2, 2, 7), atol=1e-3, rtol=0)
    assert ((boxes > 0) & (boxes < 1)).all()


def test_sizes_that_do_not_go_together_say_so() -> None:
    with pytest.raises(UserError, match="multiple of twice the 8 heads"):
        Transformer(5, TransformerConfig(width=24))
