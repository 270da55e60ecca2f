r"""Fine-tune Mask R-CNN R50-FPN on LVIS v1, as SoCo does: 90000 steps of 16 images, rare classes seen more often.

boxless finetune --recipe mask-rcnn-r50-fpn-lvis --data lvis/lvis_v1_train.json --val lvis/lvis_v1_val.json \
    --weights runs/soco --out runs/detector

90000 steps are what SoCo's released settings call 1x (Detectron2's 1x has 180000). For 2x: --iterations 180000. Images
of classes that fewer than one in a thousand images has are repeated; at most 300 detections above 0.0001 count. The
weight decay is taken to be that of SoCo's COCO runs.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_fpn_soco import RECIPE as COCO

RECIPE = replace(
    COCO,
    detector=replace(COCO.detector, score_threshold=1e-4, detections=300),
    metric="lvis",
    repeat_threshold=1e-3,
)
