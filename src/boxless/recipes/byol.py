"""Recipes of BYOL: boxless pretrain --recipe byol-small --data images/ --out runs/byol."""

from dataclasses import replace

from boxless.methods.byol import BYOLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL


def small_method() -> BYOLConfig:
    """BYOL on views of 96 px."""
    return replace(BYOLConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.97)


BYOL_SMALL = replace(SOCO_SMALL, method=small_method())
"""BYOL on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

Crops show at least a fifth of the image: at 96 px the paper's 8 % would show a handful of source pixels.
"""

BYOL_R50 = PretrainRecipe(
    method=BYOLConfig(momentum=0.99),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=300,
    batch_size=256,
)
"""BYOL on ResNet-50, as in the paper (300 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 4096, on 512 TPU cores.

Base learning rate 0.3, weight decay 1e-6 and target momentum 0.99 are the authors' for 300 epochs. Not measured by us.
"""
