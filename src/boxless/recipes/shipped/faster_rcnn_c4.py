"""Fine-tune Faster R-CNN on C4, as MoCo, SoCo and others do on VOC 07+12: 24000 steps of 16 images at 480 to 800 px.

boxless finetune --recipe faster-rcnn-c4 --data train.json --val val.json --weights runs/soco-c4 --out runs/detector

Weights of methods that train the whole backbone fill it as well. Learning rate, drops, warm-up and image sizes are
Detectron2's (facebookresearch/moco, detection/configs/pascal_voc_R_50_C4_24k_moco.yaml); AP is COCO's here, not VOC's.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    trunk=TrunkConfig(neck="c4"),
    optim=FinetuneOptim(warmup_iterations=100, drops=(18 / 24, 22 / 24)),
    iterations=24000,
    min_size=tuple(range(480, 801, 32)),
)
