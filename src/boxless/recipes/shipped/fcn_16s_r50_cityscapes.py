r"""Fine-tune FCN-16s on Cityscapes as MoCo does: 90000 steps of 16 crops of 769 px.

boxless finetune --recipe fcn-16s-r50-cityscapes --data cityscapes --val cityscapes --weights runs/moco \
    --out runs/segmenter

As fcn-16s-r50-voc, with a rate of 0.01. DetCo's 76.5 mIoU on Cityscapes probably comes from this network: its authors
released no settings.
"""

from dataclasses import replace

from boxless.recipes.shipped.fcn_16s_r50_voc import RECIPE as VOC

RECIPE = replace(VOC, optim=replace(VOC.optim, lr=0.01), iterations=90000, crop=replace(VOC.crop, size=769))
