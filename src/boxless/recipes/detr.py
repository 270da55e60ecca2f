"""Recipes of DETR.

boxless finetune --recipe detr-small --data train.json --val val.json --weights runs/up-detr --out runs/detector
"""

from boxless.detectors.detr import DETRConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.recipes.up_detr import UP_DETR_SMALL

DETR_SMALL = FinetuneRecipe(
    detector=DETRConfig(score_threshold=0.0),
    trunk=UP_DETR_SMALL.trunk,
    optim=FinetuneOptim(
        name="adamw",
        lr=1e-3,
        weight_decay=1e-4,
        warmup_iterations=50,
        drops=(2 / 3,),
        body_lr_scale=0.5,
        clip_norm=0.1,
    ),
    iterations=400,
    batch_size=8,
    min_size=(200,),
    max_size=256,
    checkpoint_every=100,
)
"""Fine-tune a small DETR on a ResNet-18, with the transformer of up-detr-small, at 200 px on a CPU.

Everything is trained, at ten times DETR's learning rate, because the run is short.
"""

DETR_R50 = FinetuneRecipe(
    detector=DETRConfig(score_threshold=0.0),
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
"""Fine-tune DETR on ResNet-50 for 300 epochs, as its paper does, from UP-DETR or from any pretrained backbone.

DETR is slow: from 150 epochs on it is worth looking at, and from a backbone alone it stays near AP 0 for long on small
data sets. Norms, stem and first stage stay as loaded, so that --weights are needed. The body learns at DETR's 1e-5;
UP-DETR's authors take 5e-5 (--optim.body_lr_scale 0.5).

Paper (DETR, table 1): 42.0 box AP after 500 epochs; UP-DETR's code: 43.1 after 300. Not measured by us.
"""
