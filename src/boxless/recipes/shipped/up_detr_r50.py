"""UP-DETR on ResNet-50 and DETR's transformer, as in the paper (60 epochs).

boxless pretrain --recipe up-detr-r50 --data images/ --init runs/swav --out runs/up-detr

The backbone is frozen: without --init, from a run or a file with torchvision's names, there is nothing to learn from.
The paper's is SwAV (800 epochs). The batch is what one large GPU may not hold: set --batch_size, the learning rate
follows it. The authors' rate falls to a tenth after 40 epochs, ours along a cosine. They took 5 days on 8 V100.

Paper: table 2, fine-tuned on COCO for 300 epochs: 42.8 box AP, and 42.1 without it (released weights: 43.1). Not
measured by us.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.up_detr import UPDETRConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=UPDETRConfig(),
    trunk=TrunkConfig(norm="frozen", neck="transformer"),
    optim=PretrainOptim(name="adamw", base_lr=1e-4, weight_decay=1e-4, warmup_epochs=0, clip_norm=0.1),
    epochs=60,
    batch_size=256,
)
