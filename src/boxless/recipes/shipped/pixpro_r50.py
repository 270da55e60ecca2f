"""PixPro on ResNet-50, as in the paper (100 epochs).

boxless pretrain --recipe pixpro-r50 --data images/ --out runs/pixpro

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 1024, on 8 V100.

Paper and repository, PixPro (100 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 40.8 box AP, 36.8 mask AP; Faster R-CNN
R50-C4 on VOC 58.8 AP. Not measured by us.
"""

from boxless.methods.pixpro import PixProConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=PixProConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=5, warmup_start=0.01, final_lr=2.5e-7
    ),
    epochs=100,
    batch_size=256,
)
