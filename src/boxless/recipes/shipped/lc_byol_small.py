"""LC-loss added to BYOL on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe lc-byol-small --data images/ --out runs/lc

The feature map of a 96 px view has 3 x 3 cells, so that the local term tells nine places apart.
"""

from dataclasses import replace

from boxless.methods.lc import LCBYOLConfig, LocalConfig
from boxless.recipes.shipped.byol_small import METHOD as BYOL
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=LCBYOLConfig(byol=BYOL, local=LocalConfig(hidden=512)))
