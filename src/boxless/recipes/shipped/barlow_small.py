"""Barlow Twins on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe barlow-small --data images/ --out runs/barlow

The projector is 512 wide: the cross-correlation of 32 images has a rank of 31 anyway. Crops as in byol-small.
"""

from dataclasses import replace

from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=BarlowTwinsConfig(scale=(0.2, 1.0), hidden=512, output=512).at_size(96))
