r"""Fine-tune Mask R-CNN R50-FPN on Cityscapes' objects, as MoCo and DetCo do: 24000 steps of 8 images.

boxless finetune --recipe mask-rcnn-r50-fpn-cityscapes --data cityscapes --val cityscapes --weights runs/detco \
    --out runs/detector
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn import RECIPE as COCO

RECIPE = replace(
    COCO,
    optim=replace(COCO.optim, lr=0.01, reference_batch=8, drops=(18 / 24,)),
    iterations=24000,
    batch_size=8,
    min_size=tuple(range(800, 1025, 32)),
    max_size=2048,
)
