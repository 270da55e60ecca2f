"""Fine-tune FCOS for 12 epochs at 800 px.

boxless finetune --recipe fcos-r50-fpn --data train.json --val val.json --weights runs/soco --out runs/detector

Backbone and P3..P5 are taken over. Learning rate and drops are the authors' (FCOS_imprv_R_50_FPN_1x: 0.01 at a batch of
16), image sizes Detectron2's. As in torchvision a score is the root of class times centre-ness, and so is 0.2 about the
authors' threshold of 0.05 on their product.

Not measured by us; torchvision's own, from supervised weights, has 39.2 box AP.
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(detector=DetectorConfig(kind="fcos", score_threshold=0.2), optim=FinetuneOptim(lr=0.01))
