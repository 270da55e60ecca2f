"""Which views each method takes of an image, in its paper's numbers."""

import dataclasses

import pytest

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.methods.all import METHODS
from boxless.methods.lc import LCBYOLConfig
from boxless.methods.self_emd import SelfEMDConfig
from boxless.methods.soco import SoCoConfig

# Flip, jitter, its four strengths, grey, blur and its range, solarisation.
T = Photometric(0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1.0, (0.1, 2.0), 0.0)  # BYOL, table 6
T_PRIME = Photometric(0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, (0.1, 2.0), 0.2)
DINO_LOCAL = Photometric(0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, (0.1, 2.0), 0.0)
MOCO = Photometric(0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, (0.1, 2.0), 0.0)  # v2
SIMCLR = Photometric(0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, (0.1, 2.0), 0.0)  # appendix A, strength 1
UNCHANGED = Photometric(0.0, 0.0, 0.4, 0.4, 0.2, 0.1, 0.0, 0.0)
UP_DETR = Photometric(0.0, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, (0.1, 2.0), 0.0)

BYOL_PAIR = (ViewSpec(224, T, (0.08, 1.0)), ViewSpec(224, T_PRIME, (0.08, 1.0)))
MOCO_PAIR = (ViewSpec(224, MOCO, (0.2, 1.0)),) * 2
DINO_VIEWS = (
    *(ViewSpec(224, T, (0.14, 1.0)), ViewSpec(224, T_PRIME, (0.14, 1.0))),
    *[ViewSpec(96, DINO_LOCAL, (0.05, 0.14))] * 8,
)
WHOLE = ViewSpec(224, T)
UNFLIPPED = ViewSpec(224, dataclasses.replace(T, flip=0.0))  # LC-loss, section 3: no spatial transformation
V2 = ViewSpec(224, T_PRIME, (0.5, 1.0), min_boxes=2)
V3 = ViewSpec(112, T_PRIME, resize_of=1)
VIEWS = {
    "byol": BYOL_PAIR,
    "barlow": BYOL_PAIR,
    "vicreg": BYOL_PAIR,
    "pixpro": BYOL_PAIR,
    "self-emd": (*BYOL_PAIR, ViewSpec(112, T_PRIME, (0.08, 1.0))),
    "simclr": (ViewSpec(224, SIMCLR, (0.08, 1.0)),) * 2,
    "moco": MOCO_PAIR,
    "densecl": MOCO_PAIR,
    "detco": (*MOCO_PAIR, *[ViewSpec(255, MOCO, (0.6, 1.0))] * 2),  # PIRL's grid of 3 cells of 85 px
    "dino": DINO_VIEWS,
    "swav": (*[ViewSpec(224, SIMCLR, (0.14, 1.0))] * 2, *[ViewSpec(96, SIMCLR, (0.05, 0.14))] * 6),
    "lc-byol": (UNFLIPPED, BYOL_PAIR[1]),
    "lc-dino": (UNFLIPPED, *DINO_VIEWS),
    "soco": (WHOLE, V2, V3),
    "soco-star": (WHOLE, V2, V3, dataclasses.replace(V2, size=192)),
    "soco-c4": (WHOLE, V2),
    "joint": (WHOLE, V2),
    "up-detr": (ViewSpec(480, UNCHANGED), *[ViewSpec(128, UP_DETR, least_side=8)] * 10),
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_views_are_the_papers(name: str) -> None:
    assert METHODS[name]().views() == VIEWS[name]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_at_half_the_size_views_and_blur_are_half_as_large_and_all_else_is_kept(name: str) -> None:
    config = METHODS[name]()
    full, half = config.views(), config.at_size(config.views()[0].size // 2).views()
    for view, small in zip(full, half, strict=True):
        assert abs(small.size - view.size / 2) <= 1.5  # a grid of 3 cells, each rounded
        look = view.photometric
        blur = (0.05, 1.0) if look != UNCHANGED else look.blur_sigma
        expected = dataclasses.replace(look, blur_sigma=blur)
        assert small == dataclasses.replace(view, size=small.size, photometric=expected)


def test_options_change_the_views() -> None:
    assert SelfEMDConfig(third_view=False).views() == BYOL_PAIR
    assert SoCoConfig(third_view="independent_crop").views() == (WHOLE, V2, dataclasses.replace(V2, size=112))
    assert LCBYOLConfig(crops=2).views() == (UNFLIPPED, *BYOL_PAIR)
    assert METHODS["joint"](object_weight=0.0).views() == (WHOLE, dataclasses.replace(V2, min_boxes=0))
