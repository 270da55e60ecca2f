"""Recipes of FCOS.

boxless finetune --recipe fcos-r50-fpn --data train.json --val val.json --weights runs/soco --out runs/detector
"""

from dataclasses import replace

from boxless.detectors.one_stage import FCOSConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

FCOS_R50_FPN = FinetuneRecipe(detector=FCOSConfig(score_threshold=0.2), optim=FinetuneOptim(lr=0.01))
"""Fine-tune FCOS for 12 epochs at 800 px.

Backbone and P3..P5 are taken over. Learning rate and drops are the authors' (FCOS_imprv_R_50_FPN_1x: 0.01 at a batch of
16), image sizes Detectron2's. As in torchvision a score is the root of class times centre-ness, and so is 0.2 about the
authors' threshold of 0.05 on their product.

Not measured by us; torchvision's own, from supervised weights, has 39.2 box AP.
"""

FCOS_R50_FPN_MMDETECTION = replace(
    FCOS_R50_FPN,
    trunk=replace(FCOS_R50_FPN.trunk, norm="sync"),
    optim=replace(
        FCOS_R50_FPN.optim, warmup_iterations=500, warmup_start=1 / 3, drops=(8 / 12, 11 / 12), clip_norm=35.0
    ),
    min_size=(800,),
)
"""Fine-tune FCOS R50-FPN on COCO for 12 epochs at 800 px with MMDetection's settings, as SoCo does.

The learning rate falls after 8 and 11 epochs; the warm-up holds a third of it for 500 steps there, here it rises from a
third. Gradients are clipped at 35. MMDetection's own keep the norms' statistics and the first stage as loaded; those of
SoCo's runs are not known, here nothing is frozen. Biases learn at twice the rate there.
"""
