"""BYOL on ResNet-50, as in the paper (300 epochs).

boxless pretrain --recipe byol-r50 --data images/ --out runs/byol

Paper: BYOL table 13 and appendix (300 epochs, batch 4096): base learning rate 0.3, weight decay 1e-6, target momentum 0.99.
Not measured by us at that size.
"""

from boxless.methods.byol import BYOLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=BYOLConfig(momentum=0.99),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=300,
    batch_size=4096,
)
