"""Boxes as (..., 4) tensors, xyxy in continuous pixels."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed
from torchvision.ops import box_iou

from boxless.geometry.affine import transform_points


def area(boxes: Tensor) -> Tensor:
    """Areas (...) in square pixels; 0 for empty or inverted boxes."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def best_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The IoU (N,) of each of the boxes (N, 4) with the one of the others (M, 4) that fits it best; 0 if M is 0."""
    return torch.cat([box_iou(boxes, others), boxes.new_zeros(len(boxes), 1)], 1).amax(1)


def clip(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes (..., 4) cut to a width x height frame."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def transform_boxes(forward: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (B, K, 4) under maps (B, 2, 3) that scale, shift and mirror; the result is xyxy again."""
    corners = transform_points(forward, boxes.reshape(*boxes.shape[:-1], 2, 2))
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def jitter(boxes: Tensor, amount: float, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Shift and resize some boxes at random: SoCo's box jitter.

    With the given probability, each box gets four independent draws r of U(-amount, amount): its centre moves by
    r1 w and r2 h, its sides become (1 + r3) w and (1 + r4) h (paper, section 3.2, which writes one symbol r for the
    four; its code draws four).

    Args:
        boxes: (..., 4) px.
        amount: largest change as a fraction of the box's width or height.
        probability: probability that a box is changed at all.
        generator: on the CPU, so that every device draws the same.
    """
    rows, *each = boxes.shape[:-1]
    draws = own_rows(rows, lambda rows: torch.rand(rows, *each, 4, generator=generator))
    draws = ((draws * 2 - 1) * amount).to(boxes.device)
    chosen = own_rows(rows, lambda rows: torch.rand(rows, *each, 1, generator=generator))
    chosen = (chosen < probability).to(boxes.device)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + draws[..., :2] * size
    half = size * (1 + draws[..., 2:]) / 2
    return torch.where(chosen, torch.cat([centre - half, centre + half], -1), boxes)


def assign_level(boxes: Tensor) -> Tensor:
    """The pyramid level 2..5 of each box by SoCo's scale-aware assignment (paper, section 3.3).

    Sides up to 48 px go to P2, up to 96 to P3, up to 192 to P4, larger ones to P5, where a side is the square root of
    the area in the *view's* pixels. As in the official code, corners are first truncated to integers that count
    as inclusive pixels: (111 - 44 + 1) is the width of a box from 44.8 to 111.55.

    Args:
        boxes: (..., 4) in view pixels.

    Returns:
        (...) int64, 2 to 5.
    """
    corners = boxes.float().trunc()
    sides = (corners[..., 2:] - corners[..., :2] + 1).clamp(min=0)
    side = sides.prod(-1).sqrt()
    return 2 + torch.bucketize(side, torch.tensor([48.0, 96.0, 192.0], device=boxes.device))


def choose(valid: Tensor, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Choose boxes at random without replacement, with the same number of slots in every image.

    Args:
        valid: (B, N), true for boxes that may be chosen.
        count: K, slots per image.
        generator: on the CPU, so that every device draws the same.

    Returns:
        indices (B, K) into N, and (B, K), true for slots that hold a chosen box (an image may have too few).
    """
    score = own_rows(len(valid), lambda rows: torch.rand(rows, valid.shape[1], generator=generator))
    score = score.to(valid.device).masked_fill(~valid, -1.0)
    if valid.shape[1] < count:
        score = torch.nn.functional.pad(score, (0, count - valid.shape[1]), value=-1.0)
    best, indices = score.topk(count, dim=1)
    return indices.clamp(max=max(valid.shape[1] - 1, 0)), best >= 0


def own_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Draw random rows for all processes and return this process's, so that they do not depend on their number.

    Args:
        rows: number of rows per process.
        draw: maps a number of rows to numbers (rows, ...), with a generator in the same state on all processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return draw(rows)
    return draw(rows * distributed.get_world_size()).chunk(distributed.get_world_size())[distributed.get_rank()]
