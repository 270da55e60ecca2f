"""SoCo* on the trunk and with the optimiser of soco-small, on a fourth view of 82 px.

boxless pretrain --recipe soco-star-small --data images/ --out runs/soco-star
"""

from dataclasses import replace

from boxless.methods.soco_star import SoCoStarConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=replace(SoCoStarConfig().at_size(96), momentum=0.97))
