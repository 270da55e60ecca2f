"""VICReg on ResNet-50, as in the authors' code for one machine (100 epochs).

boxless pretrain --recipe vicreg-r50 --data images/ --out runs/vicreg

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 512 here, and for
their 1000 epochs --epochs 1000 --batch_size 2048 --optim.base_lr 0.2 --optim.final_lr 2e-4. All parameters learn at
one rate.

Without LARS and its warm-up, VICReg is known to explode at these learning rates. Not measured by us.
"""

from boxless.methods.vicreg import VICRegConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=VICRegConfig(),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=3e-4),
    epochs=100,
    batch_size=256,
)
