"""Fine-tune Mask R-CNN R50-C4 on COCO for 12000 steps, as DetCo does.

boxless finetune --recipe mask-rcnn-r50-c4-12k --data coco --val coco --weights runs/detco --out runs/detector

The learning rate falls after 9000 and 11000 steps.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_c4 import RECIPE as ONE

RECIPE = replace(ONE, iterations=12000, optim=replace(ONE.optim, drops=(9 / 12, 11 / 12)))
