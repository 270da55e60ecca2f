"""Fine-tune Mask R-CNN R50-C4 on COCO as SoCo does: 90000 steps (1x), with a weight decay of 2.5e-5.

boxless finetune --recipe mask-rcnn-r50-c4-soco --data coco --val coco --weights runs/soco-c4 --out runs/detector

For 2x: --iterations 180000.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_c4 import RECIPE as USUAL

RECIPE = replace(USUAL, optim=replace(USUAL.optim, weight_decay=2.5e-5))
