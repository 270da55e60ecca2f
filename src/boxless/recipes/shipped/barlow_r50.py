"""Barlow Twins on ResNet-50, as in the authors' code (1000 epochs).

boxless pretrain --recipe barlow-r50 --data images/ --out runs/barlow

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 2048, on 16 V100.

Biases and norms learn at 0.0048 where weights learn at 0.2, and the authors' code gives 16 processes a sixteenth of the
gradient: so 0.024 / 16 of the weights' rate makes their steps (see `boxless.methods.barlow_twins`).

Reported: 73.5 % by a linear classifier on ImageNet after 1000 epochs. Not measured by us.
"""

from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=BarlowTwinsConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=0.2, weight_decay=1e-6, warmup_epochs=10, final_lr=2e-4, bias_lr_scale=0.024 / 16
    ),
    epochs=1000,
    batch_size=256,
)
