"""Swin-T as a detector's body (Liu et al., 2021, arXiv:2103.14030)."""

from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torchvision.models import SwinTransformer


class SwinBody(nn.Module):
    """torchvision's Swin-T without its classifier and in its names: C2..C5, 96 to 768 channels, at strides 4 to 32.

    Every map is layer-normed, as in Swin's own detectors. The last norm is torchvision's; the other three have no
    weights, which FPN's 1x1 convolutions would take in anyway, so that a classifier's file fills the whole body.
    Without stochastic depth: a target network in training mode, and a run that resumes, need the same path each time.
    """

    widths = (96, 192, 384, 768)

    def __init__(self) -> None:
        super().__init__()
        swin = SwinTransformer([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7], stochastic_depth_prob=0.0)
        self.features: nn.Sequential = swin.features  # patch embedding, then stages with patch merging between them
        self.norm: nn.LayerNorm = swin.norm

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """C2..C5 of images (B, 3, H, W), (B, C, h, w) each, by torchvision's names "0" to "3"."""
        maps = {}
        x = image
        for number, step in enumerate(self.features):
            x = step(x)  # (B, h, w, C)
            if number % 2:
                last = number == len(self.features) - 1
                normed = self.norm(x) if last else layer_norm(x, x.shape[-1:])
                maps[str(number // 2)] = normed.permute(0, 3, 1, 2)
        return maps

    @property
    def stages(self) -> list[list[nn.Module]]:
        """Five steps: the patch embedding, then each stage with the merging before it (the norm is the last one's)."""
        f = self.features
        return [[f[0]], [f[1]], [f[2], f[3]], [f[4], f[5]], [f[6], f[7], self.norm]]
