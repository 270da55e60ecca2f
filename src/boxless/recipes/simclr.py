"""Recipes of SimCLR: boxless pretrain --recipe simclr-small --data images/ --out runs/simclr."""

from dataclasses import replace

from boxless.methods.simclr import SimCLRConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

SIMCLR_SMALL = replace(SOCO_SMALL, method=SimCLRConfig(scale=(0.2, 1.0), hidden=512, temperature=0.2).at_size(96))
"""SimCLR on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

The temperature is 0.2 and not 0.1: few rivals ask for softer ones. Crops as in byol-small.
"""

SIMCLR_R50 = PretrainRecipe(
    method=SimCLRConfig(),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=100,
    batch_size=256,
)
"""SimCLR on ResNet-50, as in the paper's ablations (100 epochs).

The batch is what one large GPU holds, and the learning rate follows it; SimCLR lives on rivals, so take the largest
that fits. The paper's is --batch_size 4096, on 128 TPU cores. At 256 the paper's square-root rule would be
--optim.base_lr 1.2; the two agree at 4096.

Base learning rate 0.3, weight decay 1e-6, temperature 0.1 are the paper's. Not measured by us.
"""
