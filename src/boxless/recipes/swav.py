"""Recipes of SwAV: boxless pretrain --recipe swav-small --data images/ --out runs/swav."""

from dataclasses import replace

from boxless.methods.swav import SwAVConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

SWAV_SMALL = replace(
    SOCO_SMALL,
    method=replace(
        SwAVConfig().at_size(96),
        local_size=48,
        local_crops=4,
        scale=(0.2, 1.0),
        local_scale=(0.05, 0.2),
        hidden=512,
        prototypes=128,
        held=0.03,
        queue_length=480,
    ),
)
"""SwAV on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

Crops show at least a fifth (global) and a twentieth (local) of the image: at 96 and 48 px, smaller ones would show a
handful of source pixels. 128 prototypes, which a batch of 32 and a queue of 480 (15 batches, as in the authors' script)
fill four times over.
"""

SWAV_R50 = PretrainRecipe(
    method=SwAVConfig(queue_length=3840),
    optim=PretrainOptim(
        name="lars", base_lr=0.6, weight_decay=1e-6, warmup_epochs=0, final_lr=0.0006, adapt_biases=True
    ),
    epochs=200,
    batch_size=256,
)
"""SwAV on ResNet-50 at a small batch, as in the authors' script `swav_200ep_bs256_pretrain` (200 epochs).

Learning rate, queue and batch are the script's. For the large batch: --batch_size 4096 --method.queue_length 0
--optim.warmup_epochs 10 --optim.base_lr 0.3 --optim.final_lr 0.0003 (4.8 and 0.0048 at 4096).

Authors' README: 72.7 % on ImageNet's linear evaluation (73.9 % with a batch of 4096). Not measured by us.
"""
