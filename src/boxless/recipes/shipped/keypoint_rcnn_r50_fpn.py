"""Fine-tune Keypoint R-CNN on COCO's persons for 90000 steps of 16 images at 640 to 800 px.

boxless finetune --recipe keypoint-rcnn-r50-fpn --data train.json --val val.json --weights runs/soco --out runs/detector

The labels are COCO's person_keypoints_*.json, or others whose categories name their keypoints. Backbone, pyramid and
box head are taken over. Learning rate and image sizes are Detectron2's, drops are those of its 1x schedule; MoCo takes
twice as long (--iterations 180000). Detectron2 keeps 1500 proposals per image in training, not 2000, and learns from
images with keypoints only.

Not measured by us; torchvision's own, from supervised weights, has 54.6 box AP and 65.0 keypoint AP after 46 epochs.
"""

from boxless.detectors.two_stage import DetectorConfig
from boxless.recipes.schema import FinetuneRecipe

RECIPE = FinetuneRecipe(detector=DetectorConfig(kind="keypoint_rcnn"), iterations=90000)
