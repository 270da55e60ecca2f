"""VICReg on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe vicreg-small --data images/ --out runs/vicreg

The expander is 512 wide, as in barlow-small. Crops as in byol-small.
"""

from dataclasses import replace

from boxless.methods.vicreg import VICRegConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=VICRegConfig(scale=(0.2, 1.0), hidden=512, output=512).at_size(96))
