from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from small_methods import built, run, whole_views
from torch import Tensor

from boxless.geometry.view import View
from boxless.methods.self_emd import SelfEMD, SelfEMDConfig

CONFIG = SelfEMDConfig(hidden=16, output=8, regularization=5.0)
PYRAMIDS = {5: ((1, 1), (3, 1), (3, 2)), 2: ((1, 1), (2, 1))}
"""Width and stride of the averages over a map, by its side."""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def nodes(cells: np.ndarray, pyramid: bool) -> list[np.ndarray]:
    """Cells of a map (D, s, s) and their averages."""
    side, found = cells.shape[1], []
    for width, stride in PYRAMIDS[side] if pyramid else ((1, 1),):
        starts = range(0, side - width + 1, stride)
        found += [cells[:, y : y + width, x : x + width].mean((1, 2)) for y in starts for x in starts]
    return found


def transport(x: list[np.ndarray], y: list[np.ndarray], v_x: np.ndarray, v_y: np.ndarray) -> float:
    """Algorithm 1 of one image in the plain domain, marginals as in DeepEMD."""
    similarity = np.array([[cosine(a, b) for b in y] for a in x])
    r = np.array([max(cosine(a, v_y), 0) + 1e-3 for a in x])
    c = np.array([max(cosine(b, v_x), 0) + 1e-3 for b in y])
    r, c = r / r.sum(), c / c.sum()
    kernel, u = np.exp(-5.0 * (1 - similarity)), np.ones(len(y))
    for _ in range(10):
        v = r / (kernel @ u)  # eq. 8
        u = c / (kernel.T @ v)  # eq. 9
    return float(2 - 2 * (v[:, None] * kernel * u * similarity).sum())  # eqs. 7, 10 and 11


@torch.no_grad()
def slow_loss(method: SelfEMD, some: tuple[View, ...]) -> tuple[float, float]:
    """BYOL's and the transport's part."""
    config, byol, emd = method.config, 0.0, 0.0

    def double(tensor: Tensor) -> np.ndarray:
        return tensor[0].double().numpy()

    for i in range(len(some[0].image)):
        online, target = [], []
        for view in some:
            image = view.image[i : i + 1]
            f, g = method.encoder(image)["3"], method.target_encoder(image)["3"]
            x, y = double(method.dense_predictor(method.dense_projector(f))), double(method.target_dense_projector(g))
            v_x, v_y = x.mean((1, 2)), y.mean((1, 2))  # eq. 12
            if config.marginals == "vector":
                v_x = double(method.predictor(method.projector(f.mean((2, 3)))))
                v_y = double(method.target_projector(g.mean((2, 3))))
            online.append((v_x, nodes(x, config.pyramid)))
            target.append((v_y, nodes(y, config.pyramid)))
        for a, b in permutations(range(len(some)), 2):
            (v_x, x), (v_y, y) = online[a], target[b]
            if config.marginals == "vector":
                byol += (2 - 2 * cosine(v_x, v_y)) / len(some[0].image)
            emd += transport(x, y, v_x, v_y) / len(some[0].image)
    return byol, emd


@pytest.mark.parametrize(
    "changes", [{}, {"marginals": "mean"}, {"pyramid": False, "third_view": False}], ids=["paper", "eq12", "plain"]
)
def test_loss_is_the_papers(changes: dict[str, object]) -> None:
    method = built(replace(CONFIG, **changes)).eval()
    some = whole_views(2, 160, 160, 64)[: len(method.config.views())]
    byol, emd = slow_loss(method, some)
    output = run(method, some)
    assert output.terms["byol"].item() == pytest.approx(byol, abs=2e-4)
    assert output.terms["emd"].item() == pytest.approx(emd, abs=2e-4)
    assert output.loss.item() == pytest.approx(byol + emd, abs=4e-4)


def test_pyramid_has_the_papers_grids() -> None:
    method = built(CONFIG)
    cells = torch.randn(2, 8, 7, 7)
    made = method._nodes(cells)
    assert made.shape == (2, 8, 49 + 25 + 9)
    torch.testing.assert_close(made[:, :, 49 + 7], cells[:, :, 1:4, 2:5].mean((2, 3)))  # 5 x 5, row 1, column 2
    torch.testing.assert_close(made[:, :, 49 + 25 + 5], cells[:, :, 2:5, 4:7].mean((2, 3)))  # 3 x 3, row 1, column 2
    counts = {side: method._nodes(torch.randn(1, 8, side, side)).shape[2] for side in (4, 3, 2, 1)}
    assert counts == {4: 16 + 9, 3: 9 + 4, 2: 4 + 1, 1: 1}
