"""Faster R-CNN with FPN as in a course report: Adam for 20 epochs at 1e-4, then for 20 at 5e-5.

boxless finetune --recipe faster-rcnn-course --data train.json --val val.json --weights runs/barlow --out runs/detector

After the detectors of barlow-course-r50, which names the report and its scores: there SGD as the demo code had it gave
an mAP below 0.1. Weight decay is 0 as in PyTorch's Adam (AdamW without decay is Adam). The report names neither batch
nor norms: batch norms keep the pretraining's statistics here, which small batches can not disturb.
"""

from dataclasses import replace

from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.recipes.shipped.barlow_course_r50 import RECIPE as COURSE

RECIPE = FinetuneRecipe(
    trunk=replace(COURSE.trunk, norm="frozen"),
    optim=FinetuneOptim(name="adamw", lr=1e-4, weight_decay=0.0, warmup_iterations=0, drops=(0.5,), drop_factor=0.5),
    epochs=40,
    min_size=(800,),
)
