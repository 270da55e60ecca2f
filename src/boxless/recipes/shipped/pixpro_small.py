"""PixPro on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe pixpro-small --data images/ --out runs/pixpro

Crops show at least a fifth of the image, as in byol-small. Maps of 96 px views have 3 x 3 cells.
"""

from dataclasses import replace

from boxless.methods.pixpro import PixProConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=replace(PixProConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.97))
