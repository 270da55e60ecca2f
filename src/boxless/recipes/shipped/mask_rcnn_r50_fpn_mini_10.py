"""Fine-tune Mask R-CNN R50-FPN on 10 % of COCO for 10000 steps, as SoCo's authors do.

boxless finetune --recipe mask-rcnn-r50-fpn-mini-10 --data coco --val coco --weights runs/soco --out runs/detector

See mask-rcnn-r50-fpn-mini-5; here the rate falls after 7000 and 9000 steps.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn_mini_5 import RECIPE as FIVE

RECIPE = replace(FIVE, iterations=10000, optim=replace(FIVE.optim, drops=(0.7, 0.9)), label_fraction=0.1)
