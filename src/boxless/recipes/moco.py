"""Recipes of MoCo v2: boxless pretrain --recipe moco-small --data images/ --out runs/moco."""

from dataclasses import replace

from boxless.methods.moco import MoCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

MOCO_SMALL = replace(
    SOCO_SMALL,
    method=replace(MoCoConfig().at_size(96), hidden=512, queue_length=1024, momentum=0.99, norm_groups=2),
)
"""MoCo v2 on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

The queue holds 32 batches, so that keys are not older than the key encoder's memory (momentum 0.99, 100 steps). Two
groups of 16 images have batch statistics of their own.
"""

MOCO_R50 = PretrainRecipe(
    method=MoCoConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=0, final_lr=0.0),
    epochs=200,
    batch_size=256,
)
"""MoCo v2 on ResNet-50, as in the paper (200 epochs).

The batch is the paper's, on 8 GPUs; one large GPU holds it, with batch statistics per eighth (--method.norm_groups).
The authors' weight decay is for biases and norms too; here, as everywhere in boxless, they don't decay. Their learning
rate falls once per epoch, here with each step.

Paper: table 1, 200 epochs on ImageNet: 67.5 % by a linear classifier. Not measured by us.
"""
