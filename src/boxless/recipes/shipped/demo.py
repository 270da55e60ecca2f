"""The comparison that `boxless demo` runs: handwritten digits in photographs, a small ResNet-18-FPN, two CPU cores.

boxless demo
"""

from dataclasses import replace

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import CompareRecipe, FinetuneOptim
from boxless.recipes.shipped.compare_small import RECIPE as SMALL

RECIPE = CompareRecipe(
    view_size=64,
    pretrain=replace(SMALL.pretrain, method=SMALL.pretrain.method.at_size(64), epochs=4, batch_size=16),
    finetune=replace(
        SMALL.finetune,
        detector=DetectorConfig(anchor_sizes=(12, 24, 48, 96, 192), rpn_samples=64, rpn_proposals=100, roi_samples=32),
        optim=FinetuneOptim(lr=0.08, warmup_iterations=20),
        iterations=150,
        min_size=(96,),
        max_size=96,
    ),
)
