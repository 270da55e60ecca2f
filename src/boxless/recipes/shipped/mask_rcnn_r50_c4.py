"""Fine-tune Mask R-CNN R50-C4 on COCO, as MoCo and DetCo do: 90000 steps (1x) of 16 images at 640 to 800 px.

boxless finetune --recipe mask-rcnn-r50-c4 --data coco --val coco --weights runs/detco --out runs/detector

Boxes are pooled from C4, the ResNet's last stage and one more norm are the head. For 2x: --iterations 180000. (DetCo's
own files of this detector cap the longer side of training images at 1200 px: --max_size 1200.)
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="mask_rcnn", box_beta=0.0),
    trunk=TrunkConfig(norm="sync", neck="c4"),
    iterations=90000,
    precise_norms=200,
)
