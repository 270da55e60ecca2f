"""Fine-tune Mask R-CNN R50-FPN on COCO, as MoCo and DetCo do: 90000 steps (1x) of 16 images at 640 to 800 px.

boxless finetune --recipe mask-rcnn-r50-fpn --data coco --val coco --weights runs/detco --out runs/detector

The box head is Detectron2's usual two linear layers; norms over all processes are in backbone and pyramid, none in the
heads; 200 batches estimate the norms' statistics before the evaluation. For 2x: --iterations 180000. SoCo, PixPro and
DenseCL have other heads, which lift every start's AP (mask-rcnn-r50-fpn-soco): never compare across the two.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="mask_rcnn", rpn_kept=1000, box_beta=0.0),
    trunk=TrunkConfig(norm="sync", box_head="2fc"),
    iterations=90000,
    precise_norms=200,
)
