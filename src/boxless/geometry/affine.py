"""Affine maps between pixel frames, as (B, 2, 3) tensors: ``new = map[:, :, :2] @ old + map[:, :, 2]``.

Products are written out and not `@`: inside autocast or with TF32 a matrix product would round places to whole pixels.
"""

import torch
from torch import Tensor


def identity(batch: int) -> Tensor:
    """The identity map, (B, 2, 3)."""
    return torch.eye(2, 3).expand(batch, 2, 3).clone()


def crop_and_resize(window: Tensor, width: int | Tensor, height: int | Tensor) -> Tensor:
    """The map that shows a window of the old frame as a width x height image.

    Args:
        window: (B, 4), xyxy in the old frame, px; not empty.
        width: width of the new frame, px.
        height: height of the new frame, px.

    Returns:
        (B, 2, 3).
    """
    x1, y1, x2, y2 = window.unbind(-1)
    scale_x, scale_y = width / (x2 - x1), height / (y2 - y1)
    zero = torch.zeros_like(scale_x)
    return torch.stack(
        [torch.stack([scale_x, zero, -x1 * scale_x], -1), torch.stack([zero, scale_y, -y1 * scale_y], -1)], -2
    )


def mirror(width: int | Tensor, mirrored: Tensor) -> Tensor:
    """The map that flips left and right if `mirrored` (B,) is true, in a frame `width` px wide; (B, 2, 3)."""
    sign = 1 - 2 * mirrored.to(torch.float32)
    zero, one = torch.zeros_like(sign), torch.ones_like(sign)
    return torch.stack(
        [torch.stack([sign, zero, mirrored.to(torch.float32) * width], -1), torch.stack([zero, one, zero], -1)], -2
    )


def compose(second: Tensor, first: Tensor) -> Tensor:
    """The map that applies `first`, then `second`; both and the result (B, 2, 3)."""
    moved = _times(second[..., :2], first)
    return torch.cat([moved[..., :2], moved[..., 2:] + second[..., 2:]], -1)


def invert(forward: Tensor) -> Tensor:
    """The inverse map, (B, 2, 3); `forward` must be invertible."""
    (a, b), (c, d) = (row.unbind(-1) for row in forward[..., :2].unbind(-2))
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    linear = adjugate / (a * d - b * c)[..., None, None]
    return torch.cat([linear, -_times(linear, forward[..., 2:])], -1)


def transform_points(forward: Tensor, points: Tensor) -> Tensor:
    """Map points (B, ..., 2) from the old frame to the new one."""
    flat = points.flatten(1, -2)
    moved = _times(flat, forward[..., :2].transpose(-1, -2)) + forward[..., 2].unsqueeze(-2)
    return moved.view(points.shape)


def _times(first: Tensor, second: Tensor) -> Tensor:
    """Matrix product of (B, N, 2) and (B, 2, M), at full precision."""
    return first[..., :1] * second[..., :1, :] + first[..., 1:] * second[..., 1:, :]
