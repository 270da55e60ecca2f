"""DetCo: Unsupervised Contrastive Learning for Object Detection (Xie et al., 2021, arXiv:2102.04803).

MoCo v2 at every stage of the body, on the whole image and on its patches:
L = sum_i w_i (L_gg + L_ll + L_gl) over C2..C5 (eq. 1), each an InfoNCE of queries with keys of a slowly moving encoder
and a queue of past keys: global with global (eq. 2), local with local (eq. 5), and local queries with global keys
(eq. 4; despite its double arrow there is no term from global queries to local keys). A local vector describes the 9
patches of a 3 x 3 grid together. Four transforms are drawn per image: two global views and two sets of patches. It
trains only the backbone.

The authors published no pretraining code, and the paper leaves open what follows. We chose:

- Augmentation: MoCo v2's, for whole images and patches. The authors' repository calls this DetCo; the paper's tables
  show "DetCo+AA", which adds RandAugment at an unknown place and strength.
- Patches: PIRL's jigsaw, which the paper follows: a crop of at least 60 % of the image at 255 px, cells of 85 px, a
  random 64 px from each, so that no edge continues in the next patch. Colours change per image, not per patch, and
  patches stay in reading order: the head learns to read their concatenation.
- Heads: linear, ReLU, linear, without norm, as in MoCo v2, after global average pooling of each stage. Hidden layers
  are as wide as the stage (2048 at C5, as in MoCo v2), also in the local heads (9 C -> C -> 128). Hidden layers as wide
  as their input, as in other implementations, would have 451 million weights.
- Level weights 0.1, 0.4, 0.7, 1 and 8 queues (per stage, global and local) of MoCo v2's length and temperature.

Keys are shuffled and batch norms use parts of a batch, as in MoCo (see `boxless.methods.moco`); the patches of one
image stay together. Do not synchronise such norms between processes. Residual blocks start as the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import LEVELS, Trunk
from boxless.errors import UserError
from boxless.geometry.view import View
from boxless.losses import info_nce_loss
from boxless.methods.method import MethodOutput
from boxless.methods.moco import MomentumContrast
from boxless.methods.modules import Queue, Shuffle, in_groups, move_targets, plain_mlp, target_copy
from boxless.training.distributed import own

_GRID = 3
"""Rows and columns of patches."""


@dataclass(frozen=True)
class DetCoConfig(MomentumContrast):
    """DetCo's hyper-parameters (paper, section 3, and MoCo v2's for everything else)."""

    name: Literal["detco"] = "detco"
    patch_size: int = 64
    """Size of the patches, px (PIRL)."""
    cell_size: int = 85
    """Size of the grid's cells, px: a patch lies anywhere in its cell (PIRL)."""
    patch_scale: tuple[float, float] = (0.6, 1.0)
    """Range of the fraction of the image's area that the grid covers (PIRL)."""
    level_weights: tuple[float, float, float, float] = (0.1, 0.4, 0.7, 1.0)
    """Weights of the losses on C2..C5 (eq. 1)."""
    term_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of L_gg, L_ll and L_gl (eq. 1, for ablations); no patches are cut if the last two are 0."""

    @property
    def has_patches(self) -> bool:
        """True if a term needs patches."""
        return any(self.term_weights[1:])

    def views(self) -> tuple[ViewSpec, ...]:
        """Two global views I_q and I_k, then the crops that the patches P_q and P_k are cut from."""
        if not self.has_patches:
            return super().views()
        cut = ViewSpec(_GRID * self.cell_size, self.photometric, self.patch_scale)
        return *super().views(), cut, cut

    def at_size(self, size: int) -> Self:
        """The same method on views of another size, with patches and blur scaled to match."""
        share = size / self.size
        patch_size, cell_size = round(self.patch_size * share), round(self.cell_size * share)
        return replace(super().at_size(size), patch_size=patch_size, cell_size=cell_size)

    def build(self, trunk: Trunk) -> "DetCo":
        """Build DetCo around the trunk's backbone."""
        return DetCo(trunk, self)


class DetCo(nn.Module):
    """See the module's docstring.

    Raises:
        UserError: if no level or no term has a weight.
    """

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: DetCoConfig) -> None:
        super().__init__()
        for name, weights in (("level", config.level_weights), ("term", config.term_weights)):
            if min(weights) < 0 or not any(weights):
                raise UserError(f"method.{name}_weights: {weights}; expected none below 0 and one above")
        self.config = config
        self.encoder = trunk.backbone.body
        widths = trunk.body_widths
        self.global_heads = nn.ModuleList(plain_mlp(width, width, config.output) for width in widths)
        self.local_heads = nn.ModuleList(plain_mlp(_GRID**2 * width, width, config.output) for width in widths)
        self.target_encoder = target_copy(self.encoder)
        self.target_global_heads = target_copy(self.global_heads)
        self.target_local_heads = target_copy(self.local_heads)
        self.global_queues = _queues(config)
        self.local_queues = _queues(config)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of two global views and two grids of patches; boxes are not used."""
        shuffle = Shuffle(len(boxes), generator, views[0].image.device)
        i_q, i_k = (view.image[:, None] for view in views[:2])  # (B, 1, 3, H, W)
        patches = [self._patches(view, generator) for view in views[2:]]  # P_q and P_k, (B, 9, 3, h, w)
        q_g = self._embed(self.encoder, self.global_heads, i_q)  # of C2..C5, (B, 4, output)
        k_g = self._keys(shuffle, self.target_global_heads, i_k, self.global_queues)
        pairs = {"global": (q_g, k_g, self.global_queues)}  # eq. 2
        if self.config.has_patches:
            q_l = self._embed(self.encoder, self.local_heads, patches[0])
            k_l = self._keys(shuffle, self.target_local_heads, patches[1], self.local_queues)
            pairs["local"] = q_l, k_l, self.local_queues  # eq. 5
            pairs["global_local"] = q_l, k_g, self.global_queues  # eq. 4
        terms = {name: self._contrast(*pair) for name, pair in pairs.items()}
        weights = dict(zip(("global", "local", "global_local"), self.config.term_weights, strict=True))
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()  # eq. 1
        detached = {name: term.detach() for name, term in terms.items()}
        return MethodOutput(loss, detached, q_g[:, -1].detach(), k_g[:, -1])

    @torch.no_grad()
    def _keys(self, shuffle: Shuffle, heads: nn.ModuleList, images: Tensor, queues: Sequence[Queue]) -> Tensor:
        """Return keys (B, 4, output) of this process's images, and hold those of all processes for their queues."""
        keys = shuffle.undo(self._embed(self.target_encoder, heads, shuffle(images)))  # (W * B, 4, output)
        for queue, level_keys in zip(queues, keys.unbind(1), strict=True):
            queue.hold(level_keys)
        return own(keys)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of the key encoder, which is constant."""
        return self.config.momentum

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder and its heads, and push the step's keys to their queues."""
        move_targets(self, self.momentum(step, total_steps))
        for queue in (*self.global_queues, *self.local_queues):
            queue.push_held()

    def _patches(self, view: View, generator: torch.Generator) -> Tensor:
        image = view.patches(_GRID, self.config.patch_size, generator).image
        return image.view(-1, _GRID**2, *image.shape[1:])

    def _embed(self, encoder: nn.Module, heads: nn.ModuleList, images: Tensor) -> Tensor:
        """Unit vectors of C2..C5 of whole images (B, 1, 3, h, w) or of patches (B, 9, 3, h, w): (B, 4, output)."""

        def embed(images: Tensor) -> Tensor:
            features = encoder(images.flatten(0, 1))  # (B or 9B, C, h', w') each
            joined = [features[name].mean((2, 3)).reshape(len(images), -1) for name in LEVELS]  # (B, C or 9C)
            return torch.stack([head(each) for head, each in zip(heads, joined, strict=True)], 1)

        return normalize(in_groups(embed, images, self.config.norm_groups), dim=2)

    def _contrast(self, queries: Tensor, keys: Tensor, queues: Sequence[Queue]) -> Tensor:
        """One kind of term, weighted and summed over the levels."""
        temperature = self.config.temperature
        levels = zip(self.config.level_weights, queries.unbind(1), keys.unbind(1), queues, strict=True)
        return torch.stack([w * info_nce_loss(q, k, queue.vectors, temperature) for w, q, k, queue in levels]).sum()


def _queues(config: DetCoConfig) -> Sequence[Queue]:
    """Create one queue per level."""
    queues = nn.ModuleList(Queue(config.queue_length, config.output) for _ in config.level_weights)
    return cast("Sequence[Queue]", queues)
