"""SoCo* on ResNet-50-FPN with the 4conv1fc box head, as in the paper (400 epochs).

boxless pretrain --recipe soco-star-r50-fpn --data images/ --out runs/soco-star

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100.

Paper: table 1, SoCo* (400 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 43.2 box AP, 38.4 mask AP. Not measured by us.
"""

from dataclasses import replace

from boxless.methods.soco_star import SoCoStarConfig
from boxless.recipes.shipped.soco_r50_fpn import RECIPE as SOCO

RECIPE = replace(SOCO, method=SoCoStarConfig(), epochs=400)
