"""Recipes of DenseCL: boxless pretrain --recipe densecl-small --data images/ --out runs/densecl."""

from dataclasses import replace

from boxless.methods.densecl import DenseCLConfig
from boxless.recipes.faster_rcnn import FASTER_RCNN_AUTO
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

DENSECL_SMALL = replace(
    SOCO_SMALL, method=replace(DenseCLConfig().at_size(96), queue_length=1024, momentum=0.99, norm_groups=2)
)
"""DenseCL on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

Queues hold 32 batches, so that keys are not older than the key encoder's memory (momentum 0.99, 100 steps). Maps of
96 px views have 3 x 3 cells. Two groups of 16 images have batch statistics of their own.
"""

DENSECL_AUTO = replace(
    DENSECL_SMALL,
    trunk=FASTER_RCNN_AUTO.trunk,
    optim=replace(DENSECL_SMALL.optim, base_lr=4e-3),
)
"""DenseCL on the trunk of faster-rcnn-auto, planned for the images: the default of `boxless pretrain`.

Length, warm-up and queue follow from the number of images unless they are given (boxless.tasks.plan_pretraining).
"""

DENSECL_R50 = PretrainRecipe(
    method=DenseCLConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.3, weight_decay=1e-4, warmup_epochs=0, final_lr=0.0),
    epochs=800,
    batch_size=256,
)
"""DenseCL on ResNet-50, as the paper trains it on COCO (800 epochs).

The batch is the paper's, on 8 GPUs. No warm-up. Its weight decay is for biases and norms too; here, as everywhere in
boxless, they don't decay. On ImageNet the paper trains 200 epochs at a tenth of the rate: --optim.base_lr 0.03.

Paper: 800 epochs on COCO: Faster R-CNN R50-C4 on VOC 56.7 AP; 200 epochs on ImageNet 58.7. Not measured by us.
"""
