"""BYOL on ResNet-50, as in the paper (300 epochs).

boxless pretrain --recipe byol-r50 --data images/ --out runs/byol

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 4096, on 512 TPU cores.

Base learning rate 0.3, weight decay 1e-6 and target momentum 0.99 are the authors' for 300 epochs. Not measured by us.
"""

from boxless.methods.byol import BYOLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=BYOLConfig(momentum=0.99),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=300,
    batch_size=256,
)
