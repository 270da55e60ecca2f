r"""SoCo on ResNet-50-C4, as in the paper (100 epochs).

boxless pretrain --recipe soco-c4-r50 --data images/ --out runs/soco-c4
boxless finetune --recipe faster-rcnn-r50-c4-voc \
    --data VOCdevkit/VOC2007:trainval+VOCdevkit/VOC2012:trainval --val VOCdevkit/VOC2007:test \
    --weights runs/soco-c4 --out runs/detector

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100.

Paper: tables 2 and 3, SoCo (100 epochs) on ImageNet: Mask R-CNN R50-C4 1x 40.4 box AP, 34.9 mask AP on COCO; Faster
R-CNN R50-C4 59.1 AP on VOC. Not measured by us.
"""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.soco_c4 import SoCoC4Config
from boxless.recipes.shipped.soco_r50_fpn import RECIPE as SOCO

RECIPE = replace(SOCO, method=SoCoC4Config(), trunk=TrunkConfig(neck="c4"))
