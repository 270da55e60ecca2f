r"""Fine-tune RetinaNet R50-FPN on COCO for 12000 steps, as DetCo does, for shares of COCO too.

boxless finetune --recipe retinanet-r50-fpn-12k --data coco --val coco --label_fraction 0.01 --weights runs/detco \
    --out runs/detector

The learning rate falls after 9000 and 11000 steps.
"""

from dataclasses import replace

from boxless.recipes.shipped.retinanet_r50_fpn import RECIPE as ONE

RECIPE = replace(ONE, iterations=12000, optim=replace(ONE.optim, drops=(9 / 12, 11 / 12)))
