"""Fine-tune Sparse R-CNN with FPN for 270000 steps of 16 images at 480 to 800 px, as in its code and DetCo's transfer.

boxless finetune --recipe sparse-rcnn-r50-fpn --data train.json --val val.json --weights runs/detco --out runs/detector

All layers learn at AdamW's 2.5e-5, with batch norms over the whole batch and no stage frozen, as DetCo's authors have
it; the paper's own runs keep all norms, the stem and the first stage as loaded (--trunk.norm frozen --freeze 2). Small
data sets need fewer steps (--iterations), and few objects fewer boxes (--detector.learned_proposals 100). The codes
crop training images at random as well, and took 24 to 28 hours on 8 V100.

Code (PeizeSun/SparseR-CNN): 45.0 box AP on COCO from a supervised ResNet-50, 46.5 from DetCo's; runs differ by 0.3. Not
measured by us.
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="sparse_rcnn", score_threshold=0.0),
    optim=FinetuneOptim(name="adamw", lr=2.5e-5, weight_decay=1e-4, drops=(210 / 270, 250 / 270), clip_norm=1.0),
    iterations=270_000,
    min_size=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
)
