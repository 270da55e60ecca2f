"""Recipes of Sparse R-CNN.

boxless finetune --recipe sparse-rcnn-r50-fpn --data train.json --val val.json --weights runs/detco --out runs/detector
"""

from boxless.detectors.sparse_rcnn import SparseRCNNConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

SPARSE_RCNN_R50_FPN = FinetuneRecipe(
    detector=SparseRCNNConfig(score_threshold=0.0),
    trunk=TrunkConfig(norm="sync"),
    optim=FinetuneOptim(
        name="adamw", lr=2.5e-5, weight_decay=1e-4, warmup_start=0.01, drops=(210 / 270, 250 / 270), clip_norm=1.0
    ),
    iterations=270_000,
    min_size=tuple(range(480, 801, 32)),
    random_crop=True,
    precise_norms=200,
)
"""Fine-tune Sparse R-CNN with FPN for 270000 steps of 16 images at 480 to 800 px, as in its code and DetCo's transfer.

All layers learn at AdamW's 2.5e-5, with batch norms over the whole batch and no stage frozen, as DetCo's authors have
it; the paper's own runs keep all norms, the stem and the first stage as loaded (--trunk.norm frozen --freeze 2
--precise_norms 0). Small data sets need fewer steps (--iterations), and few objects fewer boxes
(--detector.learned_proposals 100). The codes took 24 to 28 hours on 8 V100.

Code (PeizeSun/SparseR-CNN): 45.0 box AP on COCO from a supervised ResNet-50, 46.5 from DetCo's; runs differ by 0.3. Not
measured by us.
"""
