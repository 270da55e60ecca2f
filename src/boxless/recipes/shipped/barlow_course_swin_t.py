"""Barlow Twins on Swin-T, after a course report (150 epochs).

boxless pretrain --recipe barlow-course-swin-t --data images/ --out runs/barlow-swin
boxless finetune --recipe faster-rcnn-course --data train.json --val val.json --weights runs/barlow-swin --epochs 35 \\
    --out runs/detector

Crops, projector, mean and standard deviation as in barlow-course-r50, which names the report; it says nothing more of
this run than that its detector was trained for 35 epochs and stayed close to an mAP of 0. LARS is for convolutional
networks: the optimiser is that of soco-swin-t-fpn. Not measured by us.
"""

from dataclasses import replace

from boxless.recipes.shipped.barlow_course_r50 import RECIPE as COURSE
from boxless.recipes.shipped.soco_swin_t_fpn import RECIPE as SWIN

RECIPE = replace(COURSE, trunk=replace(COURSE.trunk, backbone="swin_t"), optim=SWIN.optim)
