"""BYOL on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe byol-small --data images/ --out runs/byol

Crops show at least a fifth of the image: at 96 px the paper's 8 % would show a handful of source pixels.
"""

from dataclasses import replace

from boxless.methods.byol import BYOLConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

METHOD = replace(BYOLConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.97)
RECIPE = replace(SOCO, method=METHOD)
