"""SoCo on Swin-T with FPN and the 4conv1fc box head (100 epochs): a combination of our own, not from the paper.

boxless pretrain --recipe soco-swin-t-fpn --data images/ --out runs/soco-swin

Optimiser, learning rate and weight decay are MoBY's for Swin-T (arXiv:2105.04553, section 4.1): LARS is for
convolutional networks. Fine-tune it with AdamW: --optim.name adamw --optim.lr 1e-4 --optim.weight_decay 0.05 (Swin's
own detectors). Not measured by us.
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.soco import SoCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=SoCoConfig(),
    trunk=TrunkConfig(backbone="swin_t"),
    optim=PretrainOptim(
        name="adamw", base_lr=1e-3, reference_batch=512, weight_decay=0.05, warmup_epochs=5, final_lr=1e-6
    ),
    epochs=100,
    batch_size=256,
)
