"""Fine-tune RetinaNet R50-FPN on COCO, as DetCo, LC-loss and Self-EMD do: 90000 steps (1x) of 16 images.

boxless finetune --recipe retinanet-r50-fpn --data coco --val coco --weights runs/lc --out runs/detector

Backbone and P3..P5 are taken over. Learning rate, drops, image sizes and the loss's divisor are Detectron2's (R_50_FPN
1x: 0.01 at a batch of 16); so are the norms, in backbone and pyramid and not in the head. One difference: Detectron2's
anchors are not rounded. For 2x: --iterations 180000.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="retinanet", loss_normalizer="moving_average"),
    trunk=TrunkConfig(norm="sync", neck="fpn_p3"),
    optim=FinetuneOptim(lr=0.01),
    iterations=90000,
    precise_norms=200,
)
