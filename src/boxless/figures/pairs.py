"""Pictures of what two views of an image have in common, for networks and for methods."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.data.index import ImageIndex
from boxless.data.transforms.color import Photometric
from boxless.detectors.trunk import Trunk
from boxless.evaluation.correspondence import (
    PairDataset,
    best_matches,
    cell_places,
    correspondence_accuracy,
)
from boxless.evaluation.probes import mean_score
from boxless.figures.views import Picture, existing_proposals, make_views, sample_images
from boxless.geometry.affine import compose, invert, transform_points
from boxless.geometry.boxes import area, clip, transform_boxes
from boxless.geometry.view import View
from boxless.losses import cell_weights, sinkhorn
from boxless.methods.modules import pooled
from boxless.methods.self_emd import SelfEMD, SelfEMDConfig
from boxless.plots.pairs import ViewPair, correlation_matrix, cross_correlation, transport_plan, view_matches
from boxless.plots.probes import match_panels, score_bars
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.feature_extractor import FeatureExtractor
from boxless.training.checkpoint import checkpoints

Pixels = NDArray[np.uint8]

PAIR_SIZE = 225
"""Size of views whose cells are compared, px: 32 k + 1, see `boxless.evaluation.correspondence`."""
CORRELATED, FLIPPED = 64, 32
"""Images that the cross-correlation is over (as in the course report), and the accuracy under flip and colour."""


def _few(index: ImageIndex, count: int, seed: int) -> ImageIndex:
    """Some of the images that can be read."""
    return index.subset(sample_images(index, count, seed)[0])


def trained_method(run: Path, recipe: PretrainRecipe) -> nn.Module | None:
    """The method with all its heads as the newest checkpoint has them; None if a run kept none.

    The weights of a finished run are those of the trunk alone.
    """
    for path in reversed(checkpoints(run / "checkpoints")):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, UnpicklingError):  # it is being replaced just now, or damaged
            continue
        module = recipe.method.build(Trunk(recipe.trunk))
        assert isinstance(module, nn.Module)
        module.load_state_dict(state["module"])
        return module
    return None


@torch.no_grad()
def draw_correlation(
    run: Path, recipe: PretrainRecipe, network: FeatureExtractor, index: ImageIndex, seed: int
) -> Picture:
    """The cross-correlation of two views: of what the method compares, or of C5 where the run kept no checkpoint."""
    count = min(CORRELATED, len(index))
    table = existing_proposals(index, recipe, run) if recipe.method.needs_boxes else None
    method = None if recipe.method.needs_boxes and table is None else trained_method(run, recipe)
    few = _few(index, count, seed)
    shown = make_views(few, recipe.method.views(), None if table is None else table.aligned_to(few), seed)
    views = tuple(view.with_image(network.trunk.normalize(view.image)) for view in shown.views)
    output = None
    if method is not None:
        # In training mode: batch norms take their statistics from the batch, as in the loss.
        generator = torch.Generator().manual_seed(seed)
        output = method.train()(views, shown.boxes, shown.valid, generator)
    if output is not None and output.online is not None and output.online.shape == output.target.shape:
        first, second = output.online, output.target
        what = "what the method compares"
    else:
        first, second = (pooled(network.trunk.backbone.body, view.image) for view in views[:2])
        what = "C5"
    first, second = (each[:, :1024].float().numpy() for each in (first, second))
    matrix = cross_correlation(first, second)
    diagonal = float(np.diagonal(matrix).mean())
    off = float(np.abs(matrix[~np.eye(len(matrix), dtype=bool)]).mean())
    return Picture(
        "correlation",
        correlation_matrix(matrix, len(first), what),
        f"Cross-correlation of two views' embeddings ({what}) of {recipe.method.name}, over {len(first)} images: mean "
        f"of the diagonal {diagonal:.2f}, mean size of the rest {off:.2f}. Barlow Twins wants 1 and 0.",
    )


def _cell_centres(cells: int) -> Tensor:
    """The places of cells x cells cells, (cells^2, 2), px of a view, row by row."""
    line = cell_places(cells, PAIR_SIZE)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)


def _cell_boxes(cells: int) -> Tensor:
    """The squares around these places, which touch, (cells^2, 4); those at a view's edge may reach out of it."""
    centres = _cell_centres(cells)
    half = (centres[1, 0] - centres[0, 0]) / 2
    return torch.cat([centres - half, centres + half], -1)


@torch.inference_mode()
def draw_correspondence(
    networks: Sequence[FeatureExtractor],
    reference: FeatureExtractor,
    recipe: PretrainRecipe,
    index: ImageIndex,
    seed: int,
) -> Iterator[Picture]:
    """Which cell of a view was found where in another; and how often a cell is found in a mirrored copy."""
    config = recipe.method.at_size(PAIR_SIZE)
    specs = tuple(replace(spec, size=PAIR_SIZE, resize_of=None, min_boxes=0) for spec in config.views()[:2])
    if len(specs) < 2 or specs[0].scale is None:
        specs = (replace(specs[0], scale=(0.3, 1.0)), replace(specs[-1], scale=(0.3, 1.0)))
    shown = make_views(_few(index, 3, seed), specs, None, seed)
    maps = {network.name: [_c5(network, view.image) for view in shown.views] for network in networks}
    pairs = [
        _pair(shown.views, row, maps, shown.pixels(0, row), shown.pixels(1, row)) for row in range(len(shown.sources))
    ]
    shares = {name: float(np.mean(np.concatenate([pair.right(name) for pair in pairs]))) for name in maps}
    listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    yield Picture(
        "correspondence",
        view_matches(pairs),
        f"Two views of {len(pairs)} images, lines from cells of the first to where they truly are in the second and to "
        f"the cell that is most alike. Found in the right cell: {listed}.",
    )
    yield from _flipped([reference, *(network for network in networks if network is not reference)], index, seed)


def _c5(network: FeatureExtractor, image: Tensor) -> Tensor:
    features: Tensor = network.trunk.backbone.body(network.trunk.normalize(image))["3"]
    return features


def _pair(views: Sequence[View], row: int, maps: dict[str, list[Tensor]], first: Pixels, second: Pixels) -> ViewPair:
    cells = next(iter(maps.values()))[0].shape[-1]
    centres = _cell_centres(cells)
    across = compose(views[1].from_source, invert(views[0].from_source))[row : row + 1]
    truth = transform_points(across, centres[None])[0]
    inside = ((truth >= 0) & (truth <= PAIR_SIZE)).all(1)
    found = {
        name: centres[best_matches(a[row : row + 1], b[row : row + 1])[0][inside]].double().numpy()
        for name, (a, b) in maps.items()
    }
    places = centres[inside].double().numpy()
    # Half the way to the next cell, which of a ResNet's is further away than PAIR_SIZE / cells.
    tolerance = float(centres[1, 0] - centres[0, 0]) / 2 if cells > 1 else PAIR_SIZE / 2
    return ViewPair(first, second, places, truth[inside].double().numpy(), found, tolerance)


def _flipped(networks: Sequence[FeatureExtractor], index: ImageIndex, seed: int) -> Iterator[Picture]:
    """LC-loss's measure, as `boxless probe --kind correspondence` has it for whole data sets."""
    few = _few(index, min(FLIPPED, len(index)), seed)
    dataset = PairDataset(few, PAIR_SIZE, seed)
    pairs = [dataset[row] for row in range(len(few))]
    scores, examples, columns = [], {}, 1
    for network in networks:
        found = []
        for pair in pairs:
            maps, changed_maps = (_c5(network, each[None]) for each in (pair.image, pair.changed))
            found.append(best_matches(maps, changed_maps))
            columns = maps.shape[-1]
        matches = torch.cat(found)
        height = matches.shape[1] // columns
        scores.append(
            mean_score(network.name, "cells found", correspondence_accuracy(matches, height, columns).numpy())
        )
        examples[network.name] = matches[0].numpy()
    yield Picture(
        "correspondence-flip",
        match_panels(pairs[0], examples, columns),
        "An image, and its mirrored copy in other colours with the cells that each of the weights found or mistook.",
    )
    listed = ", ".join(f"{score.weights} {100 * score.value:.0f} %" for score in scores)
    yield Picture(
        "correspondence-accuracy",
        score_bars(scores, 1 / matches.shape[1]),
        f"How often a cell is found in a mirrored copy in other colours, over {len(pairs)} images: {listed}; "
        f"guessing {100 / matches.shape[1]:.1f} %.",
    )


@torch.inference_mode()
def draw_emd(run: Path, recipe: PretrainRecipe, network: FeatureExtractor, index: ImageIndex, seed: int) -> Picture:
    """Self-EMD's plan between two crops of an image, for a heavy, a middling and a light cell that both crops show.

    As the run's heads have it where it kept a checkpoint, or else of C5 itself, weighed by its mean (eq. 12). Crops are
    mirrored but keep their colours, and pyramid cells are left out, as in the paper's figure.
    """
    assert isinstance(recipe.method, SelfEMDConfig)
    plain = Photometric(jitter=0, gray=0, blur=0)
    specs = tuple(replace(spec, size=PAIR_SIZE, photometric=plain) for spec in recipe.method.views()[:2])
    shown = make_views(_few(index, 8, seed), specs, None, seed)
    row = max(range(len(shown.sources)), key=lambda row: _overlap(shown.views, row))
    views = [View(view.image[row : row + 1], view.from_source[row : row + 1]) for view in shown.views]
    images = [network.trunk.normalize(view.image) for view in views]
    method = trained_method(run, recipe)
    if isinstance(method, SelfEMD):
        (x, x_vector), (y, y_vector) = _online(method.eval(), images[0]), _target(method, images[1])
    else:
        x, y = (network.trunk.backbone.body(image)["3"] for image in images)
        x_vector, y_vector = x.mean((2, 3)), y.mean((2, 3))
    rows, columns = cell_weights(x, y_vector), cell_weights(y, x_vector)
    cost = 1 - normalize(x.flatten(2), dim=1).mT @ normalize(y.flatten(2), dim=1)
    plan = sinkhorn(cost, rows, columns, recipe.method.regularization, recipe.method.iterations)[0]
    cells = x.shape[-1]
    boxes = _cell_boxes(cells)
    places = [_true_place(views, box) for box in boxes]
    order = rows[0].argsort(descending=True).tolist()
    order = [cell for cell in order if places[cell] is not None] or order
    chosen = [order[0], order[len(order) // 2], order[-1]]
    grid = plan.reshape(cells, cells, y.shape[-2], y.shape[-1]).double().numpy()
    pictures = shown.pixels(0, row), shown.pixels(1, row)
    figure = transport_plan(*pictures, grid, boxes.double().numpy(), chosen, [places[cell] for cell in chosen])
    what = "its heads" if method is not None else "C5, for the run kept no checkpoint of its heads"
    return Picture(
        "emd",
        figure,
        f"Self-EMD's transport plan between two crops of an image, by {what}: where the mass of a heavy, a middling "
        "and a light cell of the first crop goes in the second, as heat maps and as flows.",
    )


def _online(method: SelfEMD, image: Tensor) -> tuple[Tensor, Tensor]:
    features = method.encoder(image)["3"]
    cells = method.dense_predictor(method.dense_projector(features))
    vector = method.predictor(method.projector(features.mean((2, 3)))) if method.with_vectors else cells.mean((2, 3))
    return cells, vector


def _target(method: SelfEMD, image: Tensor) -> tuple[Tensor, Tensor]:
    features = method.target_encoder(image)["3"]
    cells = method.target_dense_projector(features)
    vector = method.target_projector(features.mean((2, 3))) if method.with_vectors else cells.mean((2, 3))
    return cells, vector


def _overlap(views: Sequence[View], row: int) -> float:
    """The area that both views of an image show, as a share of what one of them shows, whichever is larger."""
    first, second = (view.windows()[row] for view in views)
    both = torch.cat([torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])])
    return float(area(both) / torch.maximum(area(first), area(second)))


def _true_place(views: Sequence[View], box: Tensor) -> NDArray[Any] | None:
    """The box of the second view that shows one of the first, px, or None where less than half of it is there."""
    across = compose(views[1].from_source, invert(views[0].from_source))[:1]
    whole = transform_boxes(across, clip(box, PAIR_SIZE, PAIR_SIZE)[None, None])[0]
    inside = clip(whole, PAIR_SIZE, PAIR_SIZE)
    if float(area(inside) / area(whole)) < 0.5:
        return None
    place: NDArray[Any] = inside[0].numpy()
    return place
