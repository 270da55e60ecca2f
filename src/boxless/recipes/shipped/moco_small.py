"""MoCo v2 on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe moco-small --data images/ --out runs/moco

The queue holds 32 batches, so that keys are not older than the key encoder's memory (momentum 0.99, 100 steps). Two
groups of 16 images have batch statistics of their own.
"""

from dataclasses import replace

from boxless.methods.moco import MoCoConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(
    SOCO,
    method=replace(MoCoConfig().at_size(96), hidden=512, queue_length=1024, momentum=0.99, norm_groups=2),
)
