"""Fine-tune FCN-R50-d8 on Cityscapes, as LC-loss does: OpenMMLab's 40000 steps of 8 crops of 769 px.

boxless finetune --recipe fcn-r50-cityscapes --data cityscapes --val cityscapes --weights runs/lc --out runs/segmenter

The rate falls along a polynomial from 0.01 to 0.0001; windows of 769 px, every 513 px, are averaged at test.
"""

from dataclasses import replace

from boxless.data.segmentation import CropConfig
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.shipped.fcn_r50_voc import RECIPE as VOC

RECIPE = replace(
    VOC,
    detector=DetectorConfig(kind="fcn", fcn=FCNConfig(align_corners=True, window=(769, 513))),
    optim=replace(VOC.optim, reference_batch=8),
    iterations=40000,
    batch_size=8,
    min_size=(1025,),
    max_size=2049,
    crop=CropConfig(size=769),
)
