"""Recipes of PixPro: boxless pretrain --recipe pixpro-small --data images/ --out runs/pixpro."""

from dataclasses import replace

from boxless.methods.pixpro import PixProConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

PIXPRO_SMALL = replace(
    SOCO_SMALL,
    method=replace(PixProConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.99),
    optim=replace(SOCO_SMALL.optim, base_lr=2e-3),
)
"""PixPro on the trunk of soco-small.

Crops show at least a fifth of the image, as in byol-small. Maps of 96 px views have 3 x 3 cells.

The target's momentum is the paper's and the learning rate a quarter of soco-small's: with the momentum and the rate of
byol-small, the embeddings of batches of 8 at 64 px grew alike within 60 steps.
"""

PIXPRO_R50 = PretrainRecipe(
    method=PixProConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=5, warmup_start=0.01, final_lr=2.5e-7
    ),
    epochs=100,
    batch_size=256,
)
"""PixPro on ResNet-50, as in the paper (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 1024, on 8 V100.

Paper and repository, PixPro (100 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 40.8 box AP, 36.8 mask AP; Faster R-CNN
R50-C4 on VOC 58.8 AP. Not measured by us.
"""
