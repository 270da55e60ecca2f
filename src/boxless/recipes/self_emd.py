"""Recipes of Self-EMD: boxless pretrain --recipe self-emd-small --data images/ --out runs/self-emd."""

from dataclasses import replace

from boxless.methods.self_emd import SelfEMDConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

SELF_EMD_SMALL = replace(SOCO_SMALL, method=replace(SelfEMDConfig(scale=(0.2, 1.0)).at_size(96), momentum=0.97))
"""Self-EMD on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

Crops show at least a fifth of the image, as in byol-small. Maps of 96 px views have 3 x 3 cells, those of the third
view 2 x 2; averages of 2 x 2 cells complete both.
"""

SELF_EMD_R50 = PretrainRecipe(
    method=SelfEMDConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.2, weight_decay=1e-4, warmup_epochs=4, final_lr=0.0),
    epochs=800,
    batch_size=256,
)
"""Self-EMD on ResNet-50, as the paper trains it on COCO (800 epochs).

The batch is the paper's, on 8 GPUs. Its weight decay is taken to be for weights alone.

Paper: table 1, Self-EMD on COCO: Faster R-CNN R50-FPN 1x 39.8 box AP, 40.4 with COCO's unlabelled images. Not measured
by us.
"""
