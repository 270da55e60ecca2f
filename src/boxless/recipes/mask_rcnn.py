"""Recipes of Mask R-CNN.

boxless finetune --recipe mask-rcnn-r50-fpn --data coco --val coco --weights runs/detco --out runs/detector
"""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import MaskRCNNConfig
from boxless.recipes.schema import FinetuneRecipe

MASK_RCNN_R50_FPN = FinetuneRecipe(
    detector=MaskRCNNConfig(rpn_kept=1000, box_beta=0.0),
    trunk=TrunkConfig(norm="sync", box_head="2fc"),
    iterations=90000,
    precise_norms=200,
)
"""Fine-tune Mask R-CNN R50-FPN on COCO, as MoCo and DetCo do: 90000 steps (1x) of 16 images at 640 to 800 px.

The box head is Detectron2's usual two linear layers; norms over all processes are in backbone and pyramid, none in the
heads; 200 batches estimate the norms' statistics before the evaluation. For 2x: --iterations 180000. SoCo, PixPro and
DenseCL have other heads, which lift every start's AP (mask-rcnn-r50-fpn-soco): never compare across the two.
"""

MASK_RCNN_R50_FPN_12K = replace(
    MASK_RCNN_R50_FPN, iterations=12000, optim=replace(MASK_RCNN_R50_FPN.optim, drops=(9 / 12, 11 / 12))
)
"""Fine-tune Mask R-CNN R50-FPN on COCO for 12000 steps, as DetCo does: what a good start is worth in a short training.

The learning rate falls after 9000 and 11000 steps. DetCo takes the same for shares of COCO: --label_fraction 0.01.
"""

MASK_RCNN_R50_FPN_SOCO = replace(
    MASK_RCNN_R50_FPN,
    detector=MaskRCNNConfig(rpn_kept=1000, box_beta=0.0, mask_norm=True),
    trunk=replace(MASK_RCNN_R50_FPN.trunk, box_head="4conv1fc"),
    optim=replace(MASK_RCNN_R50_FPN.optim, weight_decay=2.5e-5),
)
"""Fine-tune Mask R-CNN R50-FPN on COCO as SoCo does: 90000 steps (1x) of 16 images at 640 to 800 px.

The box head, which SoCo pretrains, has four convolutions and one linear layer; norms over all processes there, in the
mask head, in backbone and pyramid; weight decay is 2.5e-5. PixPro and DenseCL have the same heads with a decay of 1e-4.
For 2x and 4x: --iterations 180000 and 360000.
"""

MASK_RCNN_R50_FPN_MINI_5 = replace(
    MASK_RCNN_R50_FPN_SOCO,
    iterations=5500,
    optim=replace(MASK_RCNN_R50_FPN_SOCO.optim, drops=(4000 / 5500, 5000 / 5500)),
    label_fraction=0.05,
    label_choice="first",
)
"""Fine-tune Mask R-CNN R50-FPN on 5 % of COCO for 5500 steps, as SoCo's authors do.

These are the settings that the paper's scores come from: the images with the smallest ids, and a rate that falls after
4000 and 5000 steps. The paper itself says random images and 90000 steps:
--recipe mask-rcnn-r50-fpn-soco --label_fraction 0.05.
"""

MASK_RCNN_R50_FPN_MINI_10 = replace(
    MASK_RCNN_R50_FPN_MINI_5,
    iterations=10000,
    optim=replace(MASK_RCNN_R50_FPN_MINI_5.optim, drops=(0.7, 0.9)),
    label_fraction=0.1,
)
"""Fine-tune Mask R-CNN R50-FPN on 10 % of COCO for 10000 steps, as SoCo's authors do.

See mask-rcnn-r50-fpn-mini-5; here the rate falls after 7000 and 9000 steps.
"""

MASK_RCNN_R50_FPN_LVIS = replace(
    MASK_RCNN_R50_FPN_SOCO,
    detector=MaskRCNNConfig(rpn_kept=1000, box_beta=0.0, mask_norm=True, score_threshold=1e-4, detections=300),
    metric="lvis",
    repeat_threshold=1e-3,
)
"""Fine-tune Mask R-CNN R50-FPN on LVIS v1, as SoCo does: 90000 steps of 16 images, rare classes seen more often.

90000 steps are what SoCo's released settings call 1x (Detectron2's 1x has 180000). For 2x: --iterations 180000. Images
of classes that fewer than one in a thousand images has are repeated; at most 300 detections above 0.0001 count. The
weight decay is taken to be that of SoCo's COCO runs.
"""

MASK_RCNN_R50_FPN_CITYSCAPES = replace(
    MASK_RCNN_R50_FPN,
    optim=replace(MASK_RCNN_R50_FPN.optim, lr=0.01, reference_batch=8, drops=(18 / 24,)),
    iterations=24000,
    batch_size=8,
    min_size=tuple(range(800, 1025, 32)),
    max_size=2048,
)
"""Fine-tune Mask R-CNN R50-FPN on Cityscapes' objects, as MoCo and DetCo do: 24000 steps of 8 images."""

MASK_RCNN_R50_C4 = FinetuneRecipe(
    detector=MaskRCNNConfig(box_beta=0.0),
    trunk=TrunkConfig(norm="sync", neck="c4"),
    iterations=90000,
    precise_norms=200,
)
"""Fine-tune Mask R-CNN R50-C4 on COCO, as MoCo and DetCo do: 90000 steps (1x) of 16 images at 640 to 800 px.

Boxes are pooled from C4, the ResNet's last stage and one more norm are the head. For 2x: --iterations 180000. (DetCo's
own files of this detector cap the longer side of training images at 1200 px: --max_size 1200.)
"""

MASK_RCNN_R50_C4_12K = replace(
    MASK_RCNN_R50_C4, iterations=12000, optim=replace(MASK_RCNN_R50_C4.optim, drops=(9 / 12, 11 / 12))
)
"""Fine-tune Mask R-CNN R50-C4 on COCO for 12000 steps, as DetCo does.

The learning rate falls after 9000 and 11000 steps.
"""

MASK_RCNN_R50_C4_SOCO = replace(MASK_RCNN_R50_C4, optim=replace(MASK_RCNN_R50_C4.optim, weight_decay=2.5e-5))
"""Fine-tune Mask R-CNN R50-C4 on COCO as SoCo does: 90000 steps (1x), with a weight decay of 2.5e-5.

For 2x: --iterations 180000.
"""
