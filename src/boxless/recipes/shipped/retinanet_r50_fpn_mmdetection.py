"""Fine-tune RetinaNet R50-FPN on COCO for 12 epochs at 800 px with MMDetection's settings, as SoCo does.

boxless finetune --recipe retinanet-r50-fpn-mmdetection --data coco --val coco --weights runs/soco --out runs/detector

The learning rate falls after 8 and 11 epochs, the warm-up takes 500 steps. MMDetection's own keep the norms' statistics
and the first stage as loaded; those of SoCo's runs are not known, here nothing is frozen.
"""

from dataclasses import replace

from boxless.recipes.shipped.retinanet_r50_fpn import RECIPE as DETECTRON

RECIPE = replace(
    DETECTRON,
    detector=replace(DETECTRON.detector, loss_normalizer="image"),
    optim=replace(DETECTRON.optim, warmup_iterations=500, drops=(8 / 12, 11 / 12)),
    iterations=None,
    epochs=12,
    min_size=(800,),
    precise_norms=0,
)
