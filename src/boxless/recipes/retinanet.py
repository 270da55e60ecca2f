"""Recipes of RetinaNet.

boxless finetune --recipe retinanet-r50-fpn --data coco --val coco --weights runs/lc --out runs/detector
"""

from dataclasses import replace

from boxless.detectors.one_stage import RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RETINANET_R50_FPN = FinetuneRecipe(
    detector=RetinaNetConfig(loss_normalizer="moving_average"),
    trunk=TrunkConfig(norm="sync", neck="fpn_p3"),
    optim=FinetuneOptim(lr=0.01),
    iterations=90000,
    precise_norms=200,
)
"""Fine-tune RetinaNet R50-FPN on COCO, as DetCo, LC-loss and Self-EMD do: 90000 steps (1x) of 16 images.

Backbone and P3..P5 are taken over. Learning rate, drops, image sizes and the loss's divisor are Detectron2's (R_50_FPN
1x: 0.01 at a batch of 16); so are the norms, in backbone and pyramid and not in the head. One difference: Detectron2's
anchors are not rounded. For 2x: --iterations 180000.
"""

RETINANET_R50_FPN_12K = replace(
    RETINANET_R50_FPN, iterations=12000, optim=replace(RETINANET_R50_FPN.optim, drops=(9 / 12, 11 / 12))
)
"""Fine-tune RetinaNet R50-FPN on COCO for 12000 steps, as DetCo does, for shares of COCO too.

The learning rate falls after 9000 and 11000 steps.
"""

RETINANET_R50_FPN_MMDETECTION = replace(
    RETINANET_R50_FPN,
    detector=RetinaNetConfig(),
    optim=replace(RETINANET_R50_FPN.optim, warmup_iterations=500, drops=(8 / 12, 11 / 12)),
    iterations=None,
    epochs=12,
    min_size=(800,),
    precise_norms=0,
)
"""Fine-tune RetinaNet R50-FPN on COCO for 12 epochs at 800 px with MMDetection's settings, as SoCo does.

The learning rate falls after 8 and 11 epochs, the warm-up takes 500 steps. MMDetection's own keep the norms' statistics
and the first stage as loaded; those of SoCo's runs are not known, here nothing is frozen.
"""
