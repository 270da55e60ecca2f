"""VICReg on ResNet-50 for a set of half a million images, after a course report (100 epochs).

boxless pretrain --recipe vicreg-course-r50 --data images/ --out runs/vicreg
boxless finetune --recipe faster-rcnn-course --data train.json --val val.json --weights runs/vicreg --out runs/detector

Crops, projector, mean and standard deviation as in barlow-course-r50, which names the report; the rest is vicreg-r50's.
Its Faster R-CNN: mAP 0.273 on validation images. Not measured by us.
"""

from dataclasses import replace

from boxless.methods.vicreg import VICRegConfig
from boxless.recipes.shipped.barlow_course_r50 import RECIPE as COURSE
from boxless.recipes.shipped.vicreg_r50 import RECIPE as VICREG

RECIPE = replace(VICREG, method=VICRegConfig(scale=(0.4, 1.0), hidden=2048, output=2048), trunk=COURSE.trunk)
