"""Recipes of `boxless compare` and `boxless demo`.

boxless compare --data images/ --labels train.json --val val.json --out runs/compare
"""

from dataclasses import replace

from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.methods.joint import JointConfig
from boxless.methods.lc import LocalConfig
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
    view_size=64,
    pretrain=replace(
        COMPARE_SMALL.pretrain,
        method=JointConfig(
            global_weight=0,
            pixel_weight=1,
            object_weight=0,
            pixel_map="P2",
            local=LocalConfig(hidden=256, output=64, predictor=True),
            momentum=0.97,
        ).at_size(64),
        trunk=replace(COMPARE_SMALL.pretrain.trunk, fpn_channels=32, box_head_width=128),
        optim=replace(COMPARE_SMALL.pretrain.optim, base_lr=0.032),
        epochs=5,
        batch_size=8,
        checkpoint_every=500,
        health_every=25,
        workers=0,  # a scene of 64 px is decoded sooner than a worker is told to
    ),
    finetune=replace(
        COMPARE_SMALL.finetune,
        detector=FasterRCNNConfig(anchor_sizes=(12, 20, 32, 48, 64), rpn_samples=32, rpn_proposals=100, roi_samples=24),
        optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=20),
        iterations=190,
        batch_size=8,
        min_size=(64,),
        max_size=64,
        evaluate_every=190,
        workers=0,
    ),
)
"""The comparison that `boxless demo` runs: handwritten digits in photographs, a small ResNet-18-FPN, two CPU cores.

Pretraining is the joint method's pixel term alone, on P2: each of an image's 256 cells must find its own place in a
crop whose colours changed. How it was chosen, and what was tried beside it: docs/results.md.
"""
