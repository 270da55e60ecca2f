"""Recipes of VICReg: boxless pretrain --recipe vicreg-small --data images/ --out runs/vicreg."""

from dataclasses import replace

from boxless.methods.vicreg import VICRegConfig
from boxless.recipes.barlow_twins import BARLOW_COURSE_R50
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

VICREG_SMALL = replace(SOCO_SMALL, method=VICRegConfig(scale=(0.2, 1.0), hidden=512, output=512).at_size(96))
"""VICReg on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

The expander is 512 wide, as in barlow-small. Crops as in byol-small.
"""

VICREG_R50 = PretrainRecipe(
    method=VICRegConfig(),
    optim=PretrainOptim(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, final_lr=3e-4),
    epochs=100,
    batch_size=256,
)
"""VICReg on ResNet-50, as in the authors' code for one machine (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 512 here, and for
their 1000 epochs --epochs 1000 --batch_size 2048 --optim.base_lr 0.2 --optim.final_lr 2e-4. All parameters learn at
one rate.

Without LARS and its warm-up, VICReg is known to explode at these learning rates. Not measured by us.
"""

VICREG_COURSE_R50 = replace(
    VICREG_R50, method=VICRegConfig(scale=(0.4, 1.0), hidden=2048, output=2048), trunk=BARLOW_COURSE_R50.trunk
)
"""VICReg on ResNet-50 for a set of half a million images, after a course report (100 epochs).

Crops, projector, mean and standard deviation as in barlow-course-r50, which names the report; the rest is vicreg-r50's.
Its Faster R-CNN: mAP 0.273 on validation images. Not measured by us.
"""
