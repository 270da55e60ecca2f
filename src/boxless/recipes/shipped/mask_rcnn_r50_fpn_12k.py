"""Fine-tune Mask R-CNN R50-FPN on COCO for 12000 steps, as DetCo does: what a good start is worth in a short training.

boxless finetune --recipe mask-rcnn-r50-fpn-12k --data coco --val coco --weights runs/detco --out runs/detector

The learning rate falls after 9000 and 11000 steps. DetCo takes the same for shares of COCO: --label_fraction 0.01.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn import RECIPE as ONE

RECIPE = replace(ONE, iterations=12000, optim=replace(ONE.optim, drops=(9 / 12, 11 / 12)))
