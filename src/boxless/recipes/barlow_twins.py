"""Recipes of Barlow Twins: boxless pretrain --recipe barlow-small --data images/ --out runs/barlow."""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL, SOCO_SWIN_T_FPN

BARLOW_SMALL = replace(SOCO_SMALL, method=BarlowTwinsConfig(scale=(0.2, 1.0), hidden=512, output=512).at_size(96))
"""Barlow Twins on the trunk and with the optimiser of soco-small, to compare the two at equal cost per image.

The projector is 512 wide: the cross-correlation of 32 images has a rank of 31 anyway. Crops as in byol-small.
"""

BARLOW_R50 = PretrainRecipe(
    method=BarlowTwinsConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=0.2, weight_decay=1e-6, warmup_epochs=10, final_lr=2e-4, bias_lr_scale=0.024 / 16
    ),
    epochs=1000,
    batch_size=256,
)
"""Barlow Twins on ResNet-50, as in the authors' code (1000 epochs).

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 2048, on 16 V100.

Biases and norms learn at 0.0048 where weights learn at 0.2, and the authors' code gives 16 processes a sixteenth of the
gradient: so 0.024 / 16 of the weights' rate makes their steps (see `boxless.methods.barlow_twins`).

Reported: 73.5 % by a linear classifier on ImageNet after 1000 epochs. Not measured by us.
"""

BARLOW_COURSE_R50 = replace(
    BARLOW_R50,
    method=BarlowTwinsConfig(scale=(0.4, 1.0), hidden=2048, output=2048),
    trunk=TrunkConfig(box_head="2fc", mean=(0.49, 0.468, 0.414), std=(0.286, 0.278, 0.297)),
    epochs=150,
)
"""Barlow Twins on ResNet-50 for a set of half a million images, after a course report (150 epochs).

Rengaraj Rajamohan, Liu and Wang, "Self-supervised learning for Object Detection" (NYU): crops show at least 40 % of the
image, to keep the view of the whole; the projector is 2048 wide instead of 8192, for 512 000 images and not ImageNet's
1.3 million; mean and standard deviation are the data's own (give yours as `boxless statistics` prints them). Its other
rows are vicreg-course-r50 and barlow-course-swin-t.

The report names neither optimiser nor batch: they are barlow-r50's. The loss stood still from about epoch 110.
Its Faster R-CNN: mAP 0.281 on validation images, 0.265 on test images (VICReg: 0.273). Not measured by us.
"""

BARLOW_COURSE_SWIN_T = replace(
    BARLOW_COURSE_R50, trunk=replace(BARLOW_COURSE_R50.trunk, backbone="swin_t"), optim=SOCO_SWIN_T_FPN.optim
)
"""Barlow Twins on Swin-T, after a course report (150 epochs).

Crops, projector, mean and standard deviation as in barlow-course-r50, which names the report; it says nothing more of
this run than that its detector was trained for 35 epochs and stayed close to an mAP of 0. LARS is for convolutional
networks: the optimiser is that of soco-swin-t-fpn. Not measured by us.
"""
