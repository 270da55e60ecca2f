"""SoCo-C4: SoCo for detectors without a pyramid (Wei et al., 2021, arXiv:2106.02637, section 3.3, last paragraph).

There are three changes: boxes are pooled from C4, the last stage of the ResNet is the head, and there is no V3. No
levels are assigned, and the head's norms see boxes instead of images, as later in the detector. It trains backbone
(conv1 to layer3) and RoI head (layer4). Everything else is SoCo's; see soco.py.

The official code departs in three more ways, each of which is an option: V2 shows 0.6 to 1 of the image
(`scale=(0.6, 1.0)`), boxes are not jittered (`jitter_probability=0`), squares of V2 are cut out (`cut_out=0.5`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from boxless.methods.soco import SoCoFamily


@dataclass(frozen=True)
class SoCoC4Config(SoCoFamily):
    """SoCo-C4's hyper-parameters: SoCo's, on two views."""

    name: Literal["soco-c4"] = "soco-c4"

    necks: ClassVar[tuple[str, ...]] = ("c4",)
