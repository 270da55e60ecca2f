"""DINO on the trunk of soco-small.

boxless pretrain --recipe dino-small --data images/ --out runs/dino

Crops show at least a fifth (global) and a twentieth (local) of the image: at 96 and 48 px, smaller ones would show a
handful of source pixels. Four local crops and 1024 prototypes, for data sets of thousands of images and not a million.

The learning rate is the authors' for AdamW: at soco-small's, sixteen times as large, the embeddings of batches of 8
grew alike within 30 steps. The teacher's temperature is the authors' for ResNets.
"""

from dataclasses import replace

from boxless.methods.dino import DINOConfig
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

METHOD = replace(
    DINOConfig().at_size(96),
    local_size=48,
    local_crops=4,
    scale=(0.2, 1.0),
    local_scale=(0.05, 0.2),
    hidden=512,
    output=128,
    prototypes=1024,
    held=0.03,
    target_temperature=0.04,
    momentum=0.97,
)
RECIPE = replace(SOCO, method=METHOD, optim=replace(SOCO.optim, base_lr=5e-4))
