"""Fine-tune RetinaNet for 12 epochs at 800 px, as MoCo, DetCo, Self-EMD and others do on COCO.

boxless finetune --recipe retinanet-r50-fpn --data train.json --val val.json --weights runs/soco --out runs/detector

Backbone and P3..P5 are taken over. Learning rate, drops and image sizes are Detectron2's (R_50_FPN 1x: 0.01 at a batch
of 16); so are the norms, in backbone and pyramid and not in the head. Two differences: torchvision divides each image's
loss by its own positive anchors, Detectron2 by a moving average over batches, and their anchors are not rounded.

Papers: LC-loss on BYOL (400 epochs) 40.6 box AP, Self-EMD 37.4. Not measured by us.
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(detector=DetectorConfig(kind="retinanet"), optim=FinetuneOptim(lr=0.01))
