r"""Fine-tune FCN-16s on VOC 2012 (augmented) as MoCo does: 30000 steps of 16 crops of 513 px.

boxless finetune --recipe fcn-16s-r50-voc --data VOCdevkit/VOC2012:trainaug --val VOCdevkit/VOC2012:val \
    --weights runs/moco --out runs/segmenter

Images keep their size before the random factor of 0.5 to 2; the rate falls after 70 % and 90 % of the steps.
"""

from boxless.data.segmentation import CropConfig
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="fcn", fcn=FCNConfig(head="16s")),
    trunk=TrunkConfig(norm="sync", neck="none"),
    optim=FinetuneOptim(lr=0.003, weight_decay=1e-4, warmup_iterations=0, drops=(0.7, 0.9)),
    iterations=30000,
    batch_size=16,
    min_size=(),
    max_size=100_000,
    crop=CropConfig(size=513, max_share=1.0, distort=False),
)
