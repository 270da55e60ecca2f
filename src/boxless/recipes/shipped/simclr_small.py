"""SimCLR on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe simclr-small --data images/ --out runs/simclr

The temperature is 0.2 and not 0.1: few rivals ask for softer ones. Crops as in byol-small.
"""

from dataclasses import replace

from boxless.methods.simclr import SimCLRConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=SimCLRConfig(scale=(0.2, 1.0), hidden=512, temperature=0.2).at_size(96))
