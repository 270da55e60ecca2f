"""Fine-tune a small DETR on a ResNet-18, with the transformer of up-detr-small, at 200 px on a CPU.

boxless finetune --recipe detr-small --data train.json --val val.json --weights runs/up-detr --out runs/detector

Everything is trained, at ten times DETR's learning rate, because the run is short.
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.recipes.shipped.up_detr_small import RECIPE as UP_DETR

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(kind="detr", score_threshold=0.0),
    trunk=UP_DETR.trunk,
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
