"""Fine-tune a narrow RT-DETRv2 on ResNet-18, on the trunk of soco-small with a hybrid encoder, at 128 px on a CPU.

boxless finetune --recipe rt-detr-small --data train.json --val val.json --weights runs/soco --out runs/detector

The encoder is pretrained by boxless pretrain --recipe soco-small --trunk.neck hybrid (or joint-small). Everything is
trained, at ten times RT-DETR's learning rate, because the run is short.
"""

from dataclasses import replace

from boxless.detectors.hybrid_encoder import DecoderConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = FinetuneRecipe(
    detector=DetectorConfig(
        kind="rt_detr", score_threshold=0.0, rt_detr=DecoderConfig(queries=100, layers=2, denoising=20)
    ),
    trunk=replace(SOCO.trunk, neck="hybrid"),
    optim=FinetuneOptim(
        name="adamw",
        lr=1e-3,
        reference_batch=8,
        weight_decay=1e-4,
        warmup_iterations=50,
        drops=(0.8,),
        body_lr_scale=0.5,
        clip_norm=0.1,
    ),
    iterations=400,
    batch_size=8,
    min_size=(128,),
    max_size=160,
    checkpoint_every=100,
)
