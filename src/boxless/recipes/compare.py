"""Recipes of `boxless compare` and `boxless demo`.

boxless compare --data images/ --labels train.json --val val.json --out runs/compare
"""

from dataclasses import replace

from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.recipes.densecl import DENSECL_AUTO
from boxless.recipes.faster_rcnn import FASTER_RCNN_AUTO
from boxless.recipes.schema import CompareRecipe, FinetuneOptim, FinetuneRecipe
from boxless.recipes.soco import SOCO_SMALL

COMPARE_SMALL = CompareRecipe(
    view_size=96,
    pretrain=SOCO_SMALL,
    finetune=FinetuneRecipe(
        detector=FasterRCNNConfig(
            anchor_sizes=(16, 32, 64, 128, 256), rpn_samples=64, rpn_proposals=200, roi_samples=64
        ),
        optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=20, clip_norm=1.0),
        iterations=400,
        batch_size=8,
        min_size=(200,),
        max_size=256,
        checkpoint_every=100,
    ),
)
"""Compare starts on small images with a ResNet-18-FPN detector that trains on a CPU: the default of `boxless compare`.

Views of 96 px and detection at 200 px; raise view_size and finetune.min_size for larger objects' worth of pixels. The
optimiser is AdamW and not the papers' SGD, which learns too little in so few steps (docs/studies.md, "By SGD").
"""

DEMO = CompareRecipe(
    view_size=96,
    pretrain=DENSECL_AUTO,
    finetune=replace(
        FASTER_RCNN_AUTO,
        iterations=300,
        min_size=(112,),
        max_size=112,
        checkpoint_every=100,
        workers=0,  # a scene of 96 px is decoded sooner than a worker is told to
    ),
)
"""The comparison that `boxless demo` runs: handwritten digits in photographs, from ImageNet weights, two CPU cores.

The detector is the default of `boxless finetune`; self-training is measured beside it.
"""
