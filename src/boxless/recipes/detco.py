"""Recipes of DetCo: boxless pretrain --recipe detco-small --data images/ --out runs/detco."""

from dataclasses import replace

from boxless.methods.detco import DetCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

DETCO_SMALL = replace(
    SOCO_SMALL, method=replace(DetCoConfig().at_size(96), queue_length=1024, momentum=0.99, norm_groups=2)
)
"""DetCo on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

Queues hold 32 batches, so that keys are not older than the key encoder's memory (momentum 0.99, 100 steps). Two
groups of 16 images have batch statistics of their own.
"""

DETCO_R50 = PretrainRecipe(
    method=DetCoConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=0, final_lr=0.0),
    epochs=200,
    batch_size=256,
)
"""DetCo on ResNet-50, as in the paper (200 epochs).

The batch is the paper's, on 8 V100; per step it sees 1.7 times as many pixels as MoCo v2. MoCo v2's SGD, without
warm-up. Its weight decay is for biases and norms too; here, as everywhere in boxless, they don't decay.

Paper: tables 2 and 3 on ImageNet: Mask R-CNN R50-FPN 12k 29.6 box AP, 27.6 mask AP; 90k 40.1 and 36.4. These rows have
RandAugment on top; without it, as here, the authors' repository reports 27.9 and 39.5 box AP. Not measured by us.
"""
