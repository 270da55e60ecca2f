"""SwAV on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

boxless pretrain --recipe swav-small --data images/ --out runs/swav

Crops show at least a fifth (global) and a twentieth (local) of the image: at 96 and 48 px, smaller ones would show a
handful of source pixels. 128 prototypes, which a batch of 32 and a queue of 480 (15 batches, as in the authors' script)
fill four times over.
"""

from dataclasses import replace

from boxless.methods.swav import SwAVConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

METHOD = replace(
    SwAVConfig().at_size(96),
    local_size=48,
    local_crops=4,
    scale=(0.2, 1.0),
    local_scale=(0.05, 0.2),
    hidden=512,
    prototypes=128,
    held=0.03,
    queue_length=480,
)
RECIPE = replace(SOCO, method=METHOD)
