"""PixPro on the trunk of soco-small.

boxless pretrain --recipe pixpro-small --data images/ --out runs/pixpro

Crops show at least a fifth of the image, as in byol-small. Maps of 96 px views have 3 x 3 cells.

The target's momentum is the paper's and the learning rate a quarter of soco-small's: with the momentum and the rate of
byol-small, the embeddings of batches of 8 at 64 px grew alike within 60 steps.
"""

from dataclasses import replace

from boxless.methods.pixpro import PixProConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(
    SOCO,
    method=replace(PixProConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.99),
    optim=replace(SOCO.optim, base_lr=2e-3),
)
