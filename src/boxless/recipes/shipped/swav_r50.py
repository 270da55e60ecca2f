"""SwAV on ResNet-50 at a small batch, as in the authors' script `swav_200ep_bs256_pretrain` (200 epochs).

boxless pretrain --recipe swav-r50 --data images/ --out runs/swav

Learning rate, queue and batch are the script's. For the large batch: --batch_size 4096 --method.queue_length 0
--optim.warmup_epochs 10 --optim.base_lr 0.3 --optim.final_lr 0.0003 (4.8 and 0.0048 at 4096).

Authors' README: 72.7 % on ImageNet's linear evaluation (73.9 % with a batch of 4096). Not measured by us.
"""

from boxless.methods.swav import SwAVConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=SwAVConfig(queue_length=3840),
    optim=PretrainOptim(
        name="lars", base_lr=0.6, weight_decay=1e-6, warmup_epochs=0, final_lr=0.0006, adapt_biases=True
    ),
    epochs=200,
    batch_size=256,
)
