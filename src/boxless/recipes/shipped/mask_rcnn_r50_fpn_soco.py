"""Fine-tune Mask R-CNN R50-FPN on COCO as SoCo does: 90000 steps (1x) of 16 images at 640 to 800 px.

boxless finetune --recipe mask-rcnn-r50-fpn-soco --data coco --val coco --weights runs/soco --out runs/detector

The box head, which SoCo pretrains, has four convolutions and one linear layer; norms over all processes there, in the
mask head, in backbone and pyramid; weight decay is 2.5e-5. PixPro and DenseCL have the same heads with a decay of 1e-4.
For 2x and 4x: --iterations 180000 and 360000.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn import RECIPE as USUAL

RECIPE = replace(
    USUAL,
    detector=replace(USUAL.detector, mask_norm=True),
    trunk=replace(USUAL.trunk, box_head="4conv1fc"),
    optim=replace(USUAL.optim, weight_decay=2.5e-5),
)
