"""Recipes of FCN.

boxless finetune --recipe fcn-r50-voc --data VOCdevkit/VOC2012:trainaug --val VOCdevkit/VOC2012:val --weights runs/lc \
    --out runs/segmenter
"""

from dataclasses import replace

from boxless.data.segmentation import CropConfig
from boxless.detectors.fcn import FCNConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.recipes.schema import FinetuneOptim, FinetuneRecipe

FCN_R50_VOC = FinetuneRecipe(
    detector=FCNConfig(),
    trunk=TrunkConfig(norm="sync", neck="none"),
    optim=FinetuneOptim(lr=0.01, weight_decay=5e-4, warmup_iterations=0, schedule="polynomial"),
    iterations=20000,
    batch_size=16,
    min_size=(512,),
    max_size=2048,
)
"""Fine-tune FCN-R50-d8 on VOC 2012 (augmented), as LC-loss does: OpenMMLab's 20000 steps of 16 crops of 512 px.

The rate falls along a polynomial from 0.01 to 0.0001. MoCo's FCN-16s is fcn-16s-r50-voc: never compare across the two.
"""

FCN_R50_CITYSCAPES = replace(
    FCN_R50_VOC,
    detector=FCNConfig(align_corners=True, window=(769, 513)),
    optim=replace(FCN_R50_VOC.optim, reference_batch=8),
    iterations=40000,
    batch_size=8,
    min_size=(1025,),
    max_size=2049,
    crop=CropConfig(size=769),
)
"""Fine-tune FCN-R50-d8 on Cityscapes, as LC-loss does: OpenMMLab's 40000 steps of 8 crops of 769 px.

The rate falls along a polynomial from 0.01 to 0.0001; windows of 769 px, every 513 px, are averaged at test.
"""

FCN_16S_R50_VOC = FinetuneRecipe(
    detector=FCNConfig(head="16s"),
    trunk=TrunkConfig(norm="sync", neck="none"),
    optim=FinetuneOptim(lr=0.003, weight_decay=1e-4, warmup_iterations=0, drops=(0.7, 0.9)),
    iterations=30000,
    batch_size=16,
    min_size=(),
    max_size=100_000,
    crop=CropConfig(size=513, max_share=1.0, distort=False),
)
"""Fine-tune FCN-16s on VOC 2012 (augmented) as MoCo does: 30000 steps of 16 crops of 513 px.

Images keep their size before the random factor of 0.5 to 2; the rate falls after 70 % and 90 % of the steps.
"""

FCN_16S_R50_CITYSCAPES = replace(
    FCN_16S_R50_VOC,
    optim=replace(FCN_16S_R50_VOC.optim, lr=0.01),
    iterations=90000,
    crop=replace(FCN_16S_R50_VOC.crop, size=769),
)
"""Fine-tune FCN-16s on Cityscapes as MoCo does: 90000 steps of 16 crops of 769 px.

As fcn-16s-r50-voc, with a rate of 0.01. DetCo's 76.5 mIoU on Cityscapes probably comes from this network: its authors
released no settings.
"""
