"""LC-loss added to DINO on ResNet-50, with the optimiser of dino-r50 (100 epochs).

boxless pretrain --recipe lc-dino-r50 --data images/ --out runs/lc

The paper says that LC-loss helps DINO and gives no setting; alpha and the local term are those of its BYOL. Not
measured by us.
"""

from dataclasses import replace

from boxless.methods.lc import LCDINOConfig
from boxless.recipes.shipped.dino_r50 import METHOD, RECIPE

RECIPE = replace(RECIPE, method=LCDINOConfig(dino=METHOD))
