"""Fine-tune FCOS R50-FPN on COCO for 12 epochs at 800 px with MMDetection's settings, as SoCo does.

boxless finetune --recipe fcos-r50-fpn-mmdetection --data coco --val coco --weights runs/soco --out runs/detector

The learning rate falls after 8 and 11 epochs; the warm-up holds a third of it for 500 steps there, here it rises from a
third. Gradients are clipped at 35. MMDetection's own keep the norms' statistics and the first stage as loaded; those of
SoCo's runs are not known, here nothing is frozen. Biases learn at twice the rate there.
"""

from dataclasses import replace

from boxless.recipes.shipped.fcos_r50_fpn import RECIPE as AUTHORS

RECIPE = replace(
    AUTHORS,
    trunk=replace(AUTHORS.trunk, norm="sync"),
    optim=replace(AUTHORS.optim, warmup_iterations=500, warmup_start=1 / 3, drops=(8 / 12, 11 / 12), clip_norm=35.0),
    min_size=(800,),
)
