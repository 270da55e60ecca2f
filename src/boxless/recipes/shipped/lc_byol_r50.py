"""LC-loss added to BYOL on ResNet-50, as in the paper (400 epochs).

boxless pretrain --recipe lc-byol-r50 --data images/ --out runs/lc

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 4096, on 16 GPUs.

Paper: tables 1 and 2, ImageNet, 400 epochs: COCO RetinaNet R50-FPN 40.6, Mask R-CNN R50-FPN 42.5 box and 38.3 mask AP;
VOC Faster R-CNN R50-FPN 60.1. The paper does not give the local term's temperature. Not measured by us.
"""

from boxless.methods.lc import LCBYOLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=LCBYOLConfig(),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=400,
    batch_size=256,
)
