"""The comparison that `boxless demo` runs: handwritten digits in photographs, a small ResNet-18-FPN, two CPU cores.

boxless demo
"""

from dataclasses import replace

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import CompareRecipe, FinetuneOptim
from boxless.recipes.shipped.compare_small import RECIPE as SMALL

RECIPE = CompareRecipe(
    view_size=64,
    pretrain=replace(
        SMALL.pretrain,
        method=SMALL.pretrain.method.at_size(64),
        trunk=replace(SMALL.pretrain.trunk, fpn_channels=32, box_head_width=128),
        epochs=8,
    ),
    finetune=replace(
        SMALL.finetune,
        detector=DetectorConfig(anchor_sizes=(12, 20, 32, 48, 64), rpn_samples=32, rpn_proposals=100, roi_samples=48),
        optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=20),
        iterations=200,
        min_size=(64,),
        max_size=64,
    ),
)
