"""Recipes of RT-DETR.

boxless finetune --recipe rt-detr-small --data train.json --val val.json --weights runs/soco --out runs/detector
"""

from dataclasses import replace

from boxless.detectors.rt_detr import RTDETRConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe
from boxless.recipes.soco import SOCO_SMALL

RT_DETR_SMALL = FinetuneRecipe(
    detector=RTDETRConfig(queries=100, layers=2, denoising=20, score_threshold=0.0),
    trunk=replace(SOCO_SMALL.trunk, neck="hybrid"),
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
"""Fine-tune a narrow RT-DETRv2 on ResNet-18, on the trunk of soco-small with a hybrid encoder, at 128 px on a CPU.

The encoder is pretrained by boxless pretrain --recipe soco-small --trunk.neck hybrid (or joint-small). Everything is
trained, at ten times RT-DETR's learning rate, because the run is short.
"""

RT_DETR_R50 = FinetuneRecipe(
    detector=RTDETRConfig(score_threshold=0.0),
    trunk=TrunkConfig(norm="sync", neck="hybrid"),
    optim=FinetuneOptim(
        name="adamw",
        lr=1e-4,
        weight_decay=1e-4,
        warmup_iterations=2000,
        warmup_start=1 / 2000,
        drops=(),
        body_lr_scale=0.1,
        clip_norm=0.1,
    ),
    epochs=72,
    batch_size=16,
    min_size=(480, 512, 544, 576, 608, 672, 704, 736, 768, 800, 640, 640, 640),
    max_size=800,
)
"""Fine-tune RT-DETRv2 on ResNet-50 for 72 epochs (6x), as its code does, from a pretrained backbone and hybrid encoder.

The encoder is pretrained as an FPN is: boxless pretrain --recipe soco-r50-fpn --trunk.neck hybrid (or joint-r50-fpn).
From other weights it starts from scratch. The body learns at a tenth of the rate. The code's settings of ResNet-18 are
--trunk.backbone resnet18 --trunk.hybrid.expansion 0.5 --detector.layers 3 --optim.body_lr_scale 1 --epochs 120.

The code makes images square, of 640 px and in training of 480 to 800; here they keep their shape, with these shorter
sides where the longer one is at most 800. It keeps the body's norms as loaded; here they learn. What else differs is in
`boxless.detectors.rt_detr`.

Code (lyuwenyu/RT-DETR): 53.4 box AP on COCO from a supervised ResNet-50. Not measured by us.
"""
