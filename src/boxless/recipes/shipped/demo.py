"""The comparison that `boxless demo` runs: handwritten digits in photographs, a small ResNet-18-FPN, two CPU cores.

boxless demo

Pretraining is the joint method's pixel term alone, on P2: each of an image's 256 cells must find its own place in a
crop whose colours changed. How it was chosen, and what was tried beside it: docs/results.md.
"""

from dataclasses import replace

from boxless.detectors.two_stage import DetectorConfig
from boxless.methods.joint import JointConfig
from boxless.methods.lc import LocalConfig
from boxless.recipes.schema import CompareRecipe, FinetuneOptim
from boxless.recipes.shipped.compare_small import RECIPE as SMALL

METHOD = JointConfig(
    global_weight=0,
    pixel_weight=1,
    object_weight=0,
    pixel_map="P2",
    local=LocalConfig(hidden=256, output=64, predictor=True),
    momentum=0.97,
)
RECIPE = CompareRecipe(
    view_size=64,
    pretrain=replace(
        SMALL.pretrain,
        method=METHOD.at_size(64),
        trunk=replace(SMALL.pretrain.trunk, fpn_channels=32, box_head_width=128),
        optim=replace(SMALL.pretrain.optim, base_lr=0.032),
        epochs=5,
        batch_size=8,
        checkpoint_every=500,
        health_every=25,
        workers=0,  # a scene of 64 px is decoded sooner than a worker is told to
    ),
    finetune=replace(
        SMALL.finetune,
        detector=DetectorConfig(anchor_sizes=(12, 20, 32, 48, 64), rpn_samples=32, rpn_proposals=100, roi_samples=24),
        optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=20),
        iterations=190,
        batch_size=8,
        min_size=(64,),
        max_size=64,
        evaluate_every=190,
        workers=0,
    ),
)
