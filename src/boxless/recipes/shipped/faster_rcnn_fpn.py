"""Fine-tune Faster R-CNN with FPN for 12 epochs at 800 px: the default of `boxless finetune`.

boxless finetune --data train.json --val val.json --weights runs/soco --out runs/detector

Learning rate, drops and image sizes are Detectron2's, which the papers use (batch 16, 0.02, drops after 2/3 and 8/9).
"""

from boxless.recipes.schema import FinetuneRecipe

RECIPE = FinetuneRecipe()
