r"""Fine-tune Faster R-CNN R50-FPN on VOC 07+12, as LC-loss and Self-EMD do: 24000 steps of 16 images at 480 to 800 px.

boxless finetune --recipe faster-rcnn-r50-fpn-voc --data VOCdevkit/VOC2007:trainval+VOCdevkit/VOC2012:trainval \
    --val VOCdevkit/VOC2007:test --weights runs/lc --out runs/detector

Neither paper gives the length: it is that of the R50-C4 detector, with its drops and warm-up. The box head is that of
SoCo, PixPro and DenseCL.
"""

from dataclasses import replace

from boxless.recipes.shipped.faster_rcnn_r50_c4_voc import RECIPE as VOC
from boxless.recipes.shipped.mask_rcnn_r50_fpn_soco import RECIPE as PYRAMID

RECIPE = replace(VOC, detector=replace(PYRAMID.detector, kind="faster_rcnn", mask_norm=False), trunk=PYRAMID.trunk)
