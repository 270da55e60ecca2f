"""The order of images never matters to a loss, nor that of views where their paper treats them alike."""

import pytest
import torch
from small_methods import built, run, whole_views

from boxless.geometry.view import View
from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.methods.byol import BYOLConfig
from boxless.methods.densecl import DenseCLConfig
from boxless.methods.detco import DetCoConfig
from boxless.methods.dino import DINOConfig
from boxless.methods.method import MethodConfig
from boxless.methods.moco import MoCoConfig
from boxless.methods.pixpro import PixProConfig
from boxless.methods.self_emd import SelfEMDConfig
from boxless.methods.simclr import SimCLRConfig
from boxless.methods.swav import SwAVConfig
from boxless.methods.vicreg import VICRegConfig

PAIR, CROPS = (64, 64), (64, 64, 32, 32)
BOTH, KEPT = (1, 0), (0, 1)
CASES: list[tuple[MethodConfig, tuple[int, ...], tuple[int, ...]]] = [
    (BYOLConfig(hidden=16, output=8), PAIR, BOTH),
    (BarlowTwinsConfig(hidden=16, output=6), PAIR, BOTH),
    (VICRegConfig(hidden=16, output=6), PAIR, BOTH),
    (SimCLRConfig(hidden=16, output=8), PAIR, BOTH),
    (MoCoConfig(hidden=16, output=8, queue_length=12), PAIR, KEPT),
    (DenseCLConfig(hidden=16, output=8, queue_length=12), (96, 96), KEPT),
    (DetCoConfig(patch_size=32, cell_size=32, output=8, queue_length=12), (64, 64, 96, 96), (0, 1, 2, 3)),
    (PixProConfig(hidden=16, output=8), (96, 96), BOTH),
    (SelfEMDConfig(hidden=16, output=8, regularization=5.0), (96, 96, 64), (2, 1, 0)),
    (DINOConfig(hidden=16, output=8, prototypes=12), CROPS, (1, 0, 3, 2)),
    (SwAVConfig(hidden=16, output=8, prototypes=6), CROPS, (1, 0, 3, 2)),
]
"""Methods, sizes of views and the order that these may take. DetCo's patches fill their cells: nothing is drawn."""
WHOLE_BATCH = ("barlow", "vicreg", "simclr")
"""Looked at in training, where batch norms see the batch; elsewhere parts of it are dealt at random."""


@pytest.mark.parametrize(("config", "sizes", "order"), CASES, ids=[case[0].name for case in CASES])
def test_order_of_views_and_images_does_not_matter(
    config: MethodConfig, sizes: tuple[int, ...], order: tuple[int, ...]
) -> None:
    method, views = built(config).train(config.name in WHOLE_BATCH), whole_views(4, *sizes)
    expected = run(method, views).loss.item()
    assert run(method, tuple(views[number] for number in order)).loss.item() == pytest.approx(expected, rel=1e-3)
    images = torch.tensor([2, 0, 3, 1])
    dealt = tuple(View(view.image[images], view.from_source) for view in views)
    assert run(method, dealt).loss.item() == pytest.approx(expected, rel=1e-3)
