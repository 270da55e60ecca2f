"""All methods by their names."""

from boxless.methods.barlow_twins import BarlowTwinsConfig
from boxless.methods.byol import BYOLConfig
from boxless.methods.densecl import DenseCLConfig
from boxless.methods.detco import DetCoConfig
from boxless.methods.dino import DINOConfig
from boxless.methods.joint import JointConfig
from boxless.methods.lc import LCBYOLConfig, LCDINOConfig
from boxless.methods.method import MethodConfig
from boxless.methods.moco import MoCoConfig
from boxless.methods.pixpro import PixProConfig
from boxless.methods.self_emd import SelfEMDConfig
from boxless.methods.simclr import SimCLRConfig
from boxless.methods.soco import SoCoConfig
from boxless.methods.soco_c4 import SoCoC4Config
from boxless.methods.soco_star import SoCoStarConfig
from boxless.methods.swav import SwAVConfig
from boxless.methods.up_detr import UPDETRConfig
from boxless.methods.vicreg import VICRegConfig

METHODS: dict[str, type[MethodConfig]] = {
    "detco": DetCoConfig,
    "byol": BYOLConfig,
    "soco": SoCoConfig,
    "soco-star": SoCoStarConfig,
    "soco-c4": SoCoC4Config,
    "dino": DINOConfig,
    "swav": SwAVConfig,
    "lc-byol": LCBYOLConfig,
    "lc-dino": LCDINOConfig,
    "barlow": BarlowTwinsConfig,
    "moco": MoCoConfig,
    "simclr": SimCLRConfig,
    "vicreg": VICRegConfig,
    "densecl": DenseCLConfig,
    "pixpro": PixProConfig,
    "self-emd": SelfEMDConfig,
    "up-detr": UPDETRConfig,
    "joint": JointConfig,
}
"""The names that `boxless compare` takes, and the class of each one's settings."""
