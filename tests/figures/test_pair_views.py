from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxless.data.open import index_images
from boxless.detectors.trunk import TrunkConfig
from boxless.figures import pairs as picture_pairs
from boxless.figures.views import draw_views, shrink
from boxless.methods.soco import SoCoConfig
from boxless.proposals.baselines import RandomBoxes
from boxless.proposals.generate import make_proposals
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe, ProposalOptions
from boxless.tasks.feature_extractor import load_feature_extractors
from boxless.tasks.proposals import proposal_file


def test_the_boxes_of_views_are_those_of_their_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = random.integers(0, 256, (90 + 10 * number, 700 - 60 * number, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    index = index_images(tmp_path / "images", tmp_path / "cache")
    recipe = PretrainRecipe(SoCoConfig().at_size(64), TrunkConfig(), proposals=ProposalOptions(method="random"))
    table = make_proposals(index, proposal_file(index, recipe, tmp_path / "run"), RandomBoxes(), 1, True).table
    own = {}  # size of an image as drawn -> its boxes as drawn
    for row in range(6):
        image, scale = shrink(np.asarray(Image.open(index.path(row))))
        own[image.shape] = table.aligned_to(index).boxes(row) * scale

    for settings in (
        recipe,
        replace(recipe, proposals=ProposalOptions("random", file=str(tmp_path / "other.parquet"))),
    ):
        if settings.proposals.file:
            table.write(settings.proposals.file)
        grid = np.reshape(draw_views(index, settings, tmp_path / "run", seed=3).figure.axes, (4, 4))
        for source, *views in grid:
            boxes = own[np.asarray(source.images[0].get_array()).shape]
            drawn = [
                line.get_xydata() for line in source.lines if len(line.get_xydata()) == 5 and line.get_linewidth() == 2
            ]
            assert 0 < len(drawn) <= 4 and all(len(view.lines) == len(drawn) for view in views)
            for corners in drawn:
                box = np.concatenate([corners.min(0), corners.max(0)])
                assert np.abs(boxes - box).max(1).min() < 1e-3


@pytest.mark.parametrize(("moved", "share"), [(0, 100), (1, 0)])
def test_the_nearest_cell_is_always_right_and_its_neighbour_never(scenes: Path, monkeypatch, moved, share) -> None:
    make_views, shown = picture_pairs.make_views, []

    def recorded(*arguments):
        shown.append(make_views(*arguments))
        return shown[0]

    def nearest(*_: torch.Tensor) -> torch.Tensor:
        row = next(rows)
        first, second = (np.vstack([view.from_source[row], [0, 0, 1]]) for view in shown[0].views)
        places = np.array([[32 * x + 0.5, 32 * y + 0.5, 1] for y in range(8) for x in range(8)])
        there = (second @ np.linalg.inv(first) @ places.T)[:2].T
        across, down = np.clip(np.round((there - 0.5) / 32), 0, 7).astype(int).T
        return torch.tensor(8 * down + (across + moved) % 8)[None]

    rows = iter(range(3))
    monkeypatch.setattr(picture_pairs, "make_views", recorded)
    monkeypatch.setattr(picture_pairs, "best_matches", nearest)
    networks, recipe = load_feature_extractors(["none"], "resnet18", seed=0), load("densecl-small", PretrainRecipe)
    index = index_images(scenes / "images" / "unlabelled")
    picture = next(picture_pairs.draw_correspondence(networks, networks[0], recipe, index, seed=0))
    assert picture.caption.endswith(f"Found in the right cell: {networks[0].name} {share} %.")
