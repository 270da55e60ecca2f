"""Recipes of LC-loss on BYOL and on DINO: boxless pretrain --recipe lc-byol-small --data images/ --out runs/lc."""

from dataclasses import replace

from boxless.methods.lc import LCBYOLConfig, LCDINOConfig, LocalConfig
from boxless.recipes import byol, dino
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

LC_BYOL_SMALL = replace(SOCO_SMALL, method=LCBYOLConfig(byol=byol.small_method(), local=LocalConfig(hidden=512)))
"""LC-loss added to BYOL on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

The feature map of a 96 px view has 3 x 3 cells, so that the local term tells nine places apart.
"""

LC_BYOL_R50 = PretrainRecipe(
    method=LCBYOLConfig(),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=0.0),
    epochs=400,
    batch_size=256,
)
"""LC-loss added to BYOL on ResNet-50, as in the paper (400 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 4096, on 16 GPUs.

Paper: tables 1 and 2, ImageNet, 400 epochs: COCO RetinaNet R50-FPN 40.6, Mask R-CNN R50-FPN 42.5 box and 38.3 mask AP;
VOC Faster R-CNN R50-FPN 60.1. The paper does not give the local term's temperature. Not measured by us.
"""

LC_DINO_SMALL = replace(dino.DINO_SMALL, method=LCDINOConfig(dino=dino.small_method(), local=LocalConfig(hidden=512)))
"""LC-loss added to DINO on the trunk and with the optimiser of dino-small.

The feature map of a 96 px view has 3 x 3 cells, so that the local term tells nine places apart.
"""

LC_DINO_R50 = replace(dino.DINO_R50, method=LCDINOConfig(dino=dino.paper_method()))
"""LC-loss added to DINO on ResNet-50, with the optimiser of dino-r50 (100 epochs).

The paper says that LC-loss helps DINO and gives no setting; alpha and the local term are those of its BYOL. Not
measured by us.
"""
