r"""Fine-tune Faster R-CNN R50-C4 on VOC 07+12, as MoCo, SoCo, DetCo and others do: 24000 steps of 16 images.

boxless finetune --recipe faster-rcnn-r50-c4-voc --data VOCdevkit/VOC2007:trainval+VOCdevkit/VOC2012:trainval \
    --val VOCdevkit/VOC2007:test --weights runs/soco-c4 --out runs/detector

Weights of methods that train the whole backbone fill it as well. Learning rate, drops, warm-up and image sizes are
Detectron2's (facebookresearch/moco, detection/configs/pascal_voc_R_50_C4_24k_moco.yaml). The papers report the mean of
several runs: their AP50, AP and AP75 vary by 0.2 to 0.4.
"""

from dataclasses import replace

from boxless.recipes.shipped.mask_rcnn_r50_c4 import RECIPE as COCO

RECIPE = replace(
    COCO,
    detector=replace(COCO.detector, kind="faster_rcnn"),
    optim=replace(COCO.optim, warmup_iterations=100, drops=(18 / 24, 22 / 24)),
    iterations=24000,
    min_size=tuple(range(480, 801, 32)),
    learn_difficult=True,
    metric="voc07",
)
