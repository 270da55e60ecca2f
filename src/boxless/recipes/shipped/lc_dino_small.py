"""LC-loss added to DINO on the trunk and with the optimiser of dino-small.

boxless pretrain --recipe lc-dino-small --data images/ --out runs/lc

The feature map of a 96 px view has 3 x 3 cells, so that the local term tells nine places apart.
"""

from dataclasses import replace

from boxless.methods.lc import LCDINOConfig, LocalConfig
from boxless.recipes.shipped.dino_small import METHOD
from boxless.recipes.shipped.dino_small import RECIPE as DINO

RECIPE = replace(DINO, method=LCDINOConfig(dino=METHOD, local=LocalConfig(hidden=512)))
