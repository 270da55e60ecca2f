"""RoIAlign whose gradient is a product of matrices on a CPU, where torchvision's adds cell by cell on one core.

RoIAlign is separable: out[i, j] = sum over y, x of Y[i, y] X[j, x] feature[y, x], with the weights Y (S, H) and
X (S, W) of the bilinear samples' means. Its gradient is then Y^T G X, by two matrix products.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision import ops

ROOM = 2**24
"""Numbers that the products of one part of the boxes may take."""


def roi_align(feature: Tensor, rois: Tensor, size: tuple[int, int], sampling: int) -> Tensor:
    """torchvision's aligned RoIAlign at scale 1, with a faster gradient to features on a CPU.

    Args:
        feature: (B, C, H, W) float32 or float64.
        rois: (R, 5), image index and xyxy in the feature's cells; they get no gradient.
        size: height and width of the pooled maps.
        sampling: samples a side in each bin; 0: as many as there are cells.

    Returns:
        (R, C, *size).
    """
    if feature.device.type == "cpu" and feature.requires_grad and torch.is_grad_enabled():
        pooled: Tensor = _RoIAlign.apply(feature, rois, size, sampling)
        return pooled
    aligned: Tensor = ops.roi_align(feature, rois, size, sampling_ratio=sampling, aligned=True)
    return aligned


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, rois: Tensor, size: tuple[int, int], sampling: int) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.size, ctx.sampling = feature.shape, size, sampling
        aligned: Tensor = ops.roi_align(feature, rois, size, sampling_ratio=sampling, aligned=True)
        return aligned

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rois,) = ctx.saved_tensors
        _, channels, height, width = ctx.shape
        across = interpolation(rois[:, 1], rois[:, 3], ctx.size[1], width, ctx.sampling)
        down = interpolation(rois[:, 2], rois[:, 4], ctx.size[0], height, ctx.sampling)
        total = gradient.new_zeros(ctx.shape)
        part = max(1, ROOM // (channels * width * ctx.size[0]))
        for number, image in enumerate(total):
            for rows in (rois[:, 0] == number).nonzero().squeeze(1).split(part):
                columns = gradient[rows].transpose(1, 2).flatten(1, 2) @ across[rows]  # (r, S C, W)
                columns = columns.view(-1, channels, width).transpose(0, 1)  # (C, r S, W)
                image += down[rows].view(-1, height).T @ columns
        return total, None, None, None


def interpolation(start: Tensor, end: Tensor, bins: int, length: int, sampling: int) -> Tensor:
    """Weights (R, bins, length) of the cells of an axis in the mean of each bin's bilinear samples.

    Args:
        start: (R,), where the boxes begin, in cells; cell 0 has its centre at 0.5.
        end: (R,), where they end.
        bins: number of bins of a box.
        length: number of cells.
        sampling: samples in each bin; 0: as many as there are cells.
    """
    start, end = start - 0.5, end - 0.5
    side = (end - start) / bins
    samples = torch.full_like(side, sampling) if sampling else side.ceil()
    most = max(1, int(samples.max())) if len(samples) else 1
    sample = torch.arange(most, dtype=side.dtype)
    inside = (sample + 0.5) / samples.clamp(min=1)[:, None]  # (R, most), as shares of a bin
    place = torch.arange(bins, dtype=side.dtype)[:, None] + inside[:, None]  # (R, bins, most)
    place = start[:, None, None] + place * side[:, None, None]
    counted = (sample < samples[:, None])[:, None] & (place >= -1) & (place <= length)
    each = counted / samples.clamp(min=1)[:, None, None]
    place = place.clamp(0, length - 1)
    low = place.floor()
    high_share = (place - low) * each
    low = low.long()
    weights = side.new_zeros(len(side), bins, length)
    weights.scatter_add_(2, low, each - high_share)
    return weights.scatter_add_(2, (low + 1).clamp(max=length - 1), high_share)
