"""LC-loss: Self-supervised Learning with Local Contrastive Loss for Detection and Semantic Segmentation (Islam et al.).

This term is added to a method for whole images (here BYOL and DINO): each cell of the whole image's feature map, from
the target network, must find its own place among all cells of a crop of that image, from the online network (eqs. 2 to
4). L = (1 - alpha) L_G + alpha L_LC (eq. 5). It trains only the backbone's last feature map.

There is no official code, and the paper leaves open:

- the temperature (0.2 here, DenseCL's) and the mean of eq. 4 (over all kept points of the batch);
- the views of BYOL. Read literally, as here, there are two: the whole image and a crop, both also views of L_G.
  `crops=2` uses BYOL's own two crops for L_G and the whole image only for the target; the paper's cost per epoch, 1.5
  times BYOL's, suggests something similar;
- the colours (BYOL's T for the whole image, T' for the crop) and a ReLU between the local heads' two convolutions;
- the widths "projection 4096, prediction 256", read as hidden and output widths of BYOL;
- everything about DINO's variant: the whole image goes only to the teacher, and the term is averaged over both global
  crops.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.trunk import Trunk
from boxless.geometry.affine import transform_points
from boxless.geometry.view import View
from boxless.losses import local_contrastive_loss, local_mse_loss
from boxless.methods.byol import BYOL, BYOLConfig
from boxless.methods.dino import DINO, DINOConfig
from boxless.methods.method import MethodOutput
from boxless.methods.modules import conv_mlp, crop_maps, move_targets, target_copy


@dataclass(frozen=True)
class LocalConfig:
    """The local term's hyper-parameters (paper, section 4.1)."""

    hidden: int = 2048
    """Width of the hidden layer of the local projector."""
    output: int = 256
    """Width of the cells that are compared."""
    temperature: float = 0.2
    """Temperature tau of eq. 3; the paper does not give it."""
    kind: Literal["contrastive", "mse"] = "contrastive"
    """Kind of term: the paper's, or BYOL's distance of each cell from its own place only (table 6)."""
    predictor: bool = False
    """Add two convolutions on the online side, as BYOL's predictor does; the paper has none."""


class LocalTerm(nn.Module):
    """L_LC with its projectors: two 1 x 1 convolutions on the online side, an EMA copy on the target side."""

    def __init__(self, width: int, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        self.projector = conv_mlp(width, config.hidden, config.output)
        self.predictor = conv_mlp(config.output, config.hidden, config.output) if config.predictor else nn.Identity()
        self.target_projector = target_copy(self.projector)

    def forward(self, target_map: Tensor, target_view: View, online_map: Tensor, online_view: View) -> Tensor:
        """Compute the loss of two views of the same images.

        Args:
            target_map: (B, width, h, w), the target backbone's features of `target_view`; gets no gradient.
            target_view: the whole image in the paper; any view will do.
            online_map: (B, width, h', w'), the online backbone's features of `online_view`.
            online_view: the view in which the target's cells are searched; cells that it does not show are left out.
        """
        with torch.no_grad():
            f = self.target_projector(target_map)  # (B, output, h, w)
        g = self.predictor(self.projector(online_map))  # (B, output, h', w')
        points = places(target_view, online_view, *f.shape[-2:]).to(f.device, non_blocking=True)
        if self.config.kind == "mse":
            return local_mse_loss(f, g, points)
        return local_contrastive_loss(f, g, points, self.config.temperature)  # eqs. 2 to 4


def places(view: View, other: View, rows: int, columns: int) -> Tensor:
    """Map a view's cell centres into another view of the same images: p_sc of each p_c.

    Returns:
        (B, rows, columns, 2), xy as fractions of the other view's width and height, NaN if it does not show them.
    """
    height, width = other.size
    points = transform_points(other.from_source, view.cell_centres(rows, columns))  # px of the other view
    shares = points / points.new_tensor([width, height])
    inside = ((shares >= 0) & (shares < 1)).all(-1, keepdim=True)
    return shares.masked_fill(~inside, torch.nan)


def _whole(size: int, look: Photometric) -> ViewSpec:
    """The whole image, made square: strong colours, but neither crop nor flip (section 3)."""
    return ViewSpec(size, replace(look, flip=0.0))


@dataclass(frozen=True)
class LCBYOLConfig:
    """LC-loss added to BYOL (paper, section 4.1)."""

    name: Literal["lc-byol"] = "lc-byol"
    byol: BYOLConfig = BYOLConfig(momentum=0.996)  # noqa: RUF009 (frozen)
    """Settings of the method for whole images; its first photometric setting also applies to the whole image."""
    local: LocalConfig = LocalConfig()
    """Settings of the local term."""
    alpha: float = 0.1
    """Weight of the local term; 1 - alpha is the other's. 0.05 to 0.3 are about equally good (figure 3b)."""
    crops: Literal[1, 2] = 1
    """Number of random crops beside the whole image: 1 if the whole image is also a view of L_G, 2 if it is not."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """The whole image, made square, then the crops."""
        return _whole(self.byol.size, self.byol.first), *self.byol.views()[-self.crops :]

    def at_size(self, size: int) -> "LCBYOLConfig":
        """The same method on views of another size."""
        return replace(self, byol=self.byol.at_size(size))

    def build(self, trunk: Trunk) -> "LCBYOL":
        """Build LC-loss and BYOL around the trunk's backbone."""
        return LCBYOL(trunk, self)


class LCBYOL(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: LCBYOLConfig) -> None:
        super().__init__()
        self.config = config
        self.byol = BYOL(trunk, config.byol)
        self.local = LocalTerm(trunk.body_width, config.local)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of the whole image I_c and one or two crops I_sc; boxes are not used."""
        whole, *crops = views
        pair = views[-2:]  # of L_G
        maps = [self.byol.encoder(view.image)["3"] for view in pair]  # F_theta: (B, body width, h, w) each
        with torch.no_grad():
            target_maps = [self.byol.target_encoder(view.image)["3"] for view in views]  # F_xi
        output = self.byol.compare(
            [each.mean((2, 3)) for each in maps], [each.mean((2, 3)) for each in target_maps[-2:]]
        )  # eq. 1
        local = [
            self.local(target_maps[0], whole, online_map, crop)
            for crop, online_map in zip(crops, maps[-len(crops) :], strict=True)
        ]
        return _weighted(output, torch.stack(local).mean(), self.config.alpha)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of all targets, which rises to 1 along a cosine."""
        return self.byol.momentum(step, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the targets."""
        self.byol.after_step(step, total_steps)
        move_targets(self.local, self.momentum(step, total_steps))


@dataclass(frozen=True)
class LCDINOConfig:
    """LC-loss added to DINO (the paper gives no details)."""

    name: Literal["lc-dino"] = "lc-dino"
    dino: DINOConfig = DINOConfig()  # noqa: RUF009
    """Settings of the method for whole images; its first photometric setting also applies to the whole image."""
    local: LocalConfig = LocalConfig()
    """Settings of the local term."""
    alpha: float = 0.1
    """Weight of the local term; 1 - alpha is the other's."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """The whole image, made square, then DINO's crops."""
        return _whole(self.dino.size, self.dino.first), *self.dino.views()

    def at_size(self, size: int) -> "LCDINOConfig":
        """The same method on views of another size."""
        return replace(self, dino=self.dino.at_size(size))

    def build(self, trunk: Trunk) -> "LCDINO":
        """Build LC-loss and DINO around the trunk's backbone."""
        return LCDINO(trunk, self)


class LCDINO(nn.Module):
    """See the module's docstring."""

    trains = ("backbone",)

    def __init__(self, trunk: Trunk, config: LCDINOConfig) -> None:
        super().__init__()
        self.config = config
        self.dino = DINO(trunk, config.dino)
        self.local = LocalTerm(trunk.body_width, config.local)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of the whole image and DINO's crops, searching the two global ones; boxes are not used."""
        whole, *crops = views
        maps = crop_maps(self.dino.encoder, crops)  # (B, body width, h, w) each
        with torch.no_grad():
            target_maps = crop_maps(self.dino.target_encoder, crops[:2])
            # This pass is separate so that DINO's norms see only DINO's crops.
            whole_map = self.dino.target_encoder(whole.image)["3"]
        output = self.dino.compare([each.mean((2, 3)) for each in maps], [each.mean((2, 3)) for each in target_maps])
        local = [
            self.local(whole_map, whole, online_map, crop) for online_map, crop in zip(maps[:2], crops[:2], strict=True)
        ]
        return _weighted(output, torch.stack(local).mean(), self.config.alpha)

    def momentum(self, step: int, total_steps: int) -> float:
        """Momentum of all targets, which rises to 1 along a cosine."""
        return self.dino.momentum(step, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the targets and DINO's centre."""
        self.dino.after_step(step, total_steps)
        move_targets(self.local, self.momentum(step, total_steps))


def _weighted(output: MethodOutput, local: Tensor, alpha: float) -> MethodOutput:
    """L of eq. 5, with both parts named."""
    loss = (1 - alpha) * output.loss + alpha * local
    terms = {**output.terms, "global": output.loss.detach(), "local": local.detach()}
    return output._replace(loss=loss, terms=terms)
