r"""Fine-tune FCN-R50-d8 on VOC 2012 (augmented), as LC-loss does: OpenMMLab's 20000 steps of 16 crops of 512 px.

boxless finetune --recipe fcn-r50-voc --data VOCdevkit/VOC2012:trainaug --val VOCdevkit/VOC2012:val --weights runs/lc \
    --out runs/segmenter

The rate falls along a polynomial from 0.01 to 0.0001. MoCo's FCN-16s is fcn-16s-r50-voc: never compare across the two.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="fcn"),
    trunk=TrunkConfig(norm="sync", neck="none"),
    optim=FinetuneOptim(lr=0.01, weight_decay=5e-4, warmup_iterations=0, schedule="polynomial"),
    iterations=20000,
    batch_size=16,
    min_size=(512,),
    max_size=2048,
)
