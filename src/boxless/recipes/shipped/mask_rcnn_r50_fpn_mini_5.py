"""Fine-tune Mask R-CNN R50-FPN on 5 % of COCO for 5500 steps, as SoCo's authors do.

boxless finetune --recipe mask-rcnn-r50-fpn-mini-5 --data coco --val coco --weights runs/soco --out runs/detector

These are the settings that the paper's scores come from: the images with the smallest ids, and a rate that falls after
4000 and 5000 steps. The paper itself says random images and 90000 steps:
--recipe mask-rcnn-r50-fpn-soco --label_fraction 0.05.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn_soco import RECIPE as WHOLE

RECIPE = replace(
    WHOLE,
    iterations=5500,
    optim=replace(WHOLE.optim, drops=(4000 / 5500, 5000 / 5500)),
    label_fraction=0.05,
    label_choice="first",
)
