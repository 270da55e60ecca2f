"""Self-EMD on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe self-emd-small --data images/ --out runs/self-emd

Crops show at least a fifth of the image, as in byol-small. Maps of 96 px views have 3 x 3 cells, those of the third
view 2 x 2; averages of 2 x 2 cells complete both.
"""

from dataclasses import replace

from boxless.methods.self_emd import SelfEMDConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=replace(SelfEMDConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.97))
