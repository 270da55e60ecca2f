"""Recipes of Keypoint R-CNN.

boxless finetune --recipe keypoint-rcnn-r50-fpn --data person_keypoints_train2017.json \
    --val person_keypoints_val2017.json --weights runs/lc --out runs/detector
"""

from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import KeypointRCNNConfig
from boxless.recipes.schema import FinetuneRecipe

KEYPOINT_RCNN_R50_FPN = FinetuneRecipe(
    detector=KeypointRCNNConfig(rpn_kept=1500, box_beta=0.5),
    trunk=TrunkConfig(norm="sync", box_head="2fc"),
    iterations=90000,
    precise_norms=200,
)
"""Fine-tune Keypoint R-CNN R50-FPN on COCO's persons: 90000 steps of 16 images at 640 to 800 px.

The labels are COCO's person_keypoints_*.json, or others whose categories name their keypoints. Backbone, pyramid and
box head are taken over. 90000 steps are LC-loss's; MoCo and DetCo take twice as many (--iterations 180000). Detectron2
learns from images with keypoints only.

Not measured by us; torchvision's own, from supervised weights, has 54.6 box AP and 65.0 keypoint AP after 46 epochs.
"""
