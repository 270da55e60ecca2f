"""Compare starts on small images with a ResNet-18-FPN detector that trains on a CPU: the default of `boxless compare`.

boxless compare --data images/ --labels train.json --val val.json --out runs/compare

Views of 96 px and detection at 200 px; raise view_size and finetune.min_size for larger objects' worth of pixels. The
optimiser is AdamW and not the papers' SGD, which learns too little in so few steps (docs/studies.md, "By SGD").
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import CompareRecipe, FinetuneOptim, FinetuneRecipe
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = CompareRecipe(
    view_size=96,
    pretrain=SOCO,
    finetune=FinetuneRecipe(
        detector=DetectorConfig(anchor_sizes=(16, 32, 64, 128, 256), rpn_samples=64, rpn_proposals=200, roi_samples=64),
        optim=FinetuneOptim(name="adamw", lr=2e-3, warmup_iterations=20, clip_norm=1.0),
        iterations=400,
        batch_size=8,
        min_size=(200,),
        max_size=256,
        checkpoint_every=100,
    ),
)
