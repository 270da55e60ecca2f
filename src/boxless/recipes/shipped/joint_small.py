"""BYOL, LC-loss and SoCo together on the trunk and with the optimiser of soco-small.

boxless pretrain --recipe joint-small --data images/ --out runs/joint

The feature map of a 96 px view has 3 x 3 cells, so that the pixel term tells nine places apart.
"""

from dataclasses import replace

from boxless.methods.joint import JointConfig
from boxless.methods.lc import LocalConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=replace(JointConfig(local=LocalConfig(hidden=512)).at_size(96), momentum=0.97))
