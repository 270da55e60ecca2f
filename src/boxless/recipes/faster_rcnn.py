"""Recipes of Faster R-CNN.

boxless finetune --data train.json --val val.json --weights runs/soco --out runs/detector
"""

from dataclasses import replace

from boxless.data.detection import AugmentConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.recipes.barlow_twins import BARLOW_COURSE_R50
from boxless.recipes.mask_rcnn import MASK_RCNN_R50_C4, MASK_RCNN_R50_FPN, MASK_RCNN_R50_FPN_SOCO
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

FASTER_RCNN_FPN = FinetuneRecipe()
"""Fine-tune Faster R-CNN with FPN for 12 epochs at 800 px.

Learning rate, drops and image sizes are Detectron2's, which the papers use (batch 16, 0.02, drops after 2/3 and 8/9).
"""

FASTER_RCNN_AUTO = FinetuneRecipe(
    detector=FasterRCNNConfig(rpn_samples=128, rpn_proposals=500, roi_samples=128),
    trunk=TrunkConfig(backbone="resnet18", fpn_channels=64, box_head="2fc", box_head_width=512),
    optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=50, schedule="cosine", final_lr=1e-4),
    batch_size=8,
    accumulate="auto",
    augment=AugmentConfig(color=0.5, zoom=(0.7, 1.5), until=0.85),
    ema=0.05,
)
"""Fine-tune Faster R-CNN on few labels, planned for labels and machine: the default of `boxless finetune`.

Image size, anchors and number of steps follow from labels and device unless they are given (boxless.tasks.plan).
"""

FASTER_RCNN_R50_FPN = replace(MASK_RCNN_R50_FPN, detector=FasterRCNNConfig(rpn_kept=1000, box_beta=0.0))
"""Fine-tune Faster R-CNN R50-FPN on COCO, as Self-EMD does: 90000 steps (1x) of 16 images at 640 to 800 px.

Detectron2's two linear layers as box head; norms over all processes in backbone and pyramid.
"""

FASTER_RCNN_R50_C4_VOC = replace(
    MASK_RCNN_R50_C4,
    detector=FasterRCNNConfig(box_beta=0.0),
    optim=replace(MASK_RCNN_R50_C4.optim, warmup_iterations=100, drops=(18 / 24, 22 / 24)),
    iterations=24000,
    min_size=tuple(range(480, 801, 32)),
    learn_difficult=True,
    metric="voc07",
)
"""Fine-tune Faster R-CNN R50-C4 on VOC 07+12, as MoCo, SoCo, DetCo and others do: 24000 steps of 16 images.

Weights of methods that train the whole backbone fill it as well. Learning rate, drops, warm-up and image sizes are
Detectron2's (facebookresearch/moco, detection/configs/pascal_voc_R_50_C4_24k_moco.yaml). The papers report the mean of
several runs: their AP50, AP and AP75 vary by 0.2 to 0.4.
"""

FASTER_RCNN_R50_FPN_VOC = replace(
    FASTER_RCNN_R50_C4_VOC,
    detector=FASTER_RCNN_R50_FPN.detector,
    trunk=MASK_RCNN_R50_FPN_SOCO.trunk,
)
"""Fine-tune Faster R-CNN R50-FPN on VOC 07+12, as LC-loss and Self-EMD do: 24000 steps of 16 images at 480 to 800 px.

Neither paper gives the length: it is that of the R50-C4 detector, with its drops and warm-up. The box head is that of
SoCo, PixPro and DenseCL.
"""

FASTER_RCNN_COURSE = FinetuneRecipe(
    trunk=replace(BARLOW_COURSE_R50.trunk, norm="frozen"),
    optim=FinetuneOptim(name="adamw", lr=1e-4, weight_decay=0.0, warmup_iterations=0, drops=(0.5,), drop_factor=0.5),
    epochs=40,
    min_size=(800,),
)
"""Faster R-CNN with FPN as in a course report: Adam for 20 epochs at 1e-4, then for 20 at 5e-5.

After the detectors of barlow-course-r50, which names the report and its scores: there SGD as the demo code had it gave
an mAP below 0.1. Weight decay is 0 as in PyTorch's Adam (AdamW without decay is Adam). The report names neither batch
nor norms: batch norms keep the pretraining's statistics here, which small batches can not disturb.
"""
