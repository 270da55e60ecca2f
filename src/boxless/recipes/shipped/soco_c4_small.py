"""SoCo on a ResNet-18 without a pyramid, at 96 px, with the optimiser of soco-small.

boxless pretrain --recipe soco-c4-small --data images/ --out runs/soco-c4

C4 is 6 x 6 cells here and boxes are pooled to 14 x 14: for trying the method out, not for small objects. In a
comparison, give every cell this trunk with --pretrain.trunk.neck c4.
"""

from dataclasses import replace

from boxless.methods.soco_c4 import SoCoC4Config
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(SOCO, method=replace(SoCoC4Config().at_size(96), momentum=0.97), trunk=replace(SOCO.trunk, neck="c4"))
