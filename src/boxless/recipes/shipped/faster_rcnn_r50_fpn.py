"""Fine-tune Faster R-CNN R50-FPN on COCO, as Self-EMD does: 90000 steps (1x) of 16 images at 640 to 800 px.

boxless finetune --recipe faster-rcnn-r50-fpn --data coco --val coco --weights runs/self-emd --out runs/detector

Detectron2's two linear layers as box head; norms over all processes in backbone and pyramid.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn import RECIPE as MASKS

RECIPE = replace(MASKS, detector=replace(MASKS.detector, kind="faster_rcnn"))
