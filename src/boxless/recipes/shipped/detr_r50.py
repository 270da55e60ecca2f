"""Fine-tune DETR on ResNet-50 for 300 epochs, as its paper does, from UP-DETR or from any pretrained backbone.

boxless finetune --recipe detr-r50 --data train.json --val val.json --weights runs/up-detr --out runs/detector

DETR is slow: from 150 epochs on it is worth looking at, and from a backbone alone it stays near AP 0 for long on small
data sets. Norms, stem and first stage stay as loaded, so that --weights are needed. The body learns at DETR's 1e-5;
UP-DETR's authors take 5e-5 (--optim.body_lr_scale 0.5).

Paper (DETR, table 1): 42.0 box AP after 500 epochs; UP-DETR's code: 43.1 after 300. Not measured by us.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="detr", score_threshold=0.0),
    trunk=TrunkConfig(norm="frozen", neck="transformer"),
    optim=FinetuneOptim(
        name="adamw", lr=1e-4, weight_decay=1e-4, warmup_iterations=0, drops=(2 / 3,), body_lr_scale=0.1, clip_norm=0.1
    ),
    epochs=300,
    batch_size=16,
    min_size=tuple(range(480, 801, 32)),
    random_crop=True,
    freeze=2,
)
