"""Barlow Twins on ResNet-50 for a set of half a million images, after a course report (150 epochs).

boxless statistics --data images/
boxless pretrain --recipe barlow-course-r50 --data images/ --out runs/barlow
boxless finetune --recipe faster-rcnn-course --data train.json --val val.json --weights runs/barlow --out runs/detector

Rengaraj Rajamohan, Liu and Wang, "Self-supervised learning for Object Detection" (NYU): crops show at least 40 % of the
image, to keep the view of the whole; the projector is 2048 wide instead of 8192, for 512 000 images and not ImageNet's
1.3 million; mean and standard deviation are the data's own (give yours as `boxless statistics` prints them). Its other
rows are vicreg-course-r50 and barlow-course-swin-t.

The report names neither optimiser nor batch: they are barlow-r50's. The loss stood still from about epoch 110.
Its Faster R-CNN: mAP 0.281 on validation images, 0.265 on test images (VICReg: 0.273). Not measured by us.
"""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.recipes.shipped.barlow_r50 import RECIPE as BARLOW

RECIPE = replace(
    BARLOW,
    method=BarlowTwinsConfig(scale=(0.4, 1.0), hidden=2048, output=2048),
    trunk=TrunkConfig(box_head="2fc", mean=(0.49, 0.468, 0.414), std=(0.286, 0.278, 0.297)),
    epochs=150,
)
