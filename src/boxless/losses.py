"""The methods' loss functions, on tensors; they know nothing of networks.

All run in float32 (or float64, if given it), also inside autocast, because 16 bits are too few for a covariance or a
Sinkhorn kernel. No gradient flows to arguments that the paper takes from the target network; each docstring says so.
Rows are the caller's choice: gather the vectors first if a loss covers several devices.

Shapes: N images (or rows), D embedding, C channels, h w cells, K negatives or prototypes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")


def _full_precision(equation: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Leave autocast and raise 16-bit arguments to float32 before `equation` sees them."""

    @wraps(equation)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(_tensors([*args, *kwargs.values()])).device.type
        with torch.autocast(device, enabled=False):
            raised = {name: _raised(value) for name, value in kwargs.items()}
            return equation(*map(_raised, args), **raised)

    return run


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _raised(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_raised(each) for each in value]
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def _cells(feature_map: Tensor) -> Tensor:
    """(N, C, h, w) or (N, C, cells) as unit vectors (N, cells, C)."""
    return F.normalize(feature_map.flatten(2).mT, dim=-1)


# ---- whole images: one vector each


@_full_precision
def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of `2 - 2 cos(prediction, target)`: 0 aligned, 2 orthogonal, 4 opposed (BYOL, eq. 2).

    prediction, target: (N, D), any scale. No gradient to `target`. BYOL adds both directions of a pair of views.
    """
    cosine = (F.normalize(prediction, dim=-1) * F.normalize(target.detach(), dim=-1)).sum(-1)
    return (2 - 2 * cosine).mean()


@_full_precision
def info_nce_loss(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean of `-log(e^{q.k/t} / (e^{q.k/t} + sum_j e^{q.n_j/t}))`; `ln(K + 1)` if all agree equally (MoCo, eq. 1).

    query, positive: (N, D); negatives: (K, D), shared by all rows; any scale, cosines are taken. No gradient to
    `positive` and `negatives`, which MoCo takes from its momentum encoder and queue; if both sides learn, see
    `nt_xent_loss`.
    """
    return _info_nce(F.normalize(query, dim=-1), F.normalize(positive.detach(), dim=-1), negatives, temperature)


def _info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    agree = (query * positive).sum(-1) / temperature  # (N,)
    differ = query @ F.normalize(negatives.detach(), dim=-1).T / temperature  # (N, K)
    # logaddexp instead of joining both: (N, K) is DenseCL's largest tensor and should exist once
    return (torch.logaddexp(agree, differ.logsumexp(-1)) - agree).mean()


@_full_precision
def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Mean over the 2N anchors of the cross-entropy against all other 2N - 1 vectors (SimCLR, eq. 1, Alg. 1).

    z1, z2: (N, D), the two views of N images, any scale. Gradient reaches both. `ln(2N - 1)` if all agree equally;
    SimCLR's code is twice this (it adds the means of both views).
    """
    z = F.normalize(torch.cat([z1, z2]), dim=-1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # (2N, 2N), no vector is its own negative
    positives = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(logits, positives)


@_full_precision
def barlow_twins_loss(z1: Tensor, z2: Tensor, redundancy_weight: float) -> Tensor:
    """`sum_i (C_ii - 1)^2 + redundancy_weight * sum_{i != j} C_ij^2`, C the cross-correlation (Barlow Twins, eq. 1).

    z1, z2: (N, D), N >= 2. Each dimension is normalised over the rows of its own view (biased variance, eps 1e-5, the
    official code's batch norm). Gradient reaches both.
    """
    normalised = [F.batch_norm(z, None, None, training=True, eps=1e-5) for z in (z1, z2)]
    correlation = normalised[0].T @ normalised[1] / len(z1)  # (D, D)
    invariance = (correlation.diagonal() - 1).square().sum()
    return invariance + redundancy_weight * _off_diagonal(correlation).square().sum()


def _off_diagonal(square: Tensor) -> Tensor:
    """All but the diagonal of (D, D), as a view (D - 1, D)."""
    size = len(square)
    return square.flatten()[:-1].view(size - 1, size + 1)[:, 1:]


@_full_precision
def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Invariance, variance and covariance of two views, weighted (VICReg, eq. 6, in the official code's convention).

    z1, z2: (N, D), N >= 2, not normalised. Gradient reaches both. As in the code and unlike the paper: the squared
    distance is averaged over D too, and the variance terms of the two views are averaged (the covariance terms added).
    """
    invariance = F.mse_loss(z1, z2)
    variance = (_variance_hinge(z1) + _variance_hinge(z2)) / 2
    covariance = _covariance_penalty(z1) + _covariance_penalty(z2)
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


def _variance_hinge(z: Tensor) -> Tensor:
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


def _covariance_penalty(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)  # (D, D)
    return _off_diagonal(covariance).square().sum() / z.shape[1]


@_full_precision
def dino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Mean cross-entropy over all pairs of a student crop and another teacher crop (DINO, eq. 3, Alg. 1).

    student: crops of (N, D) logits, at least two; teacher: its logits for the first crops (two in the paper), same
    order; center: (D,), subtracted from the teacher's. No gradient to `teacher` and `center`. `ln D` at equal logits.
    """
    with torch.no_grad():
        targets = [((logits - center) / teacher_temperature).softmax(-1) for logits in teacher]
    return _across_crops([logits / student_temperature for logits in student], targets)


@_full_precision
def swav_loss(scores: Sequence[Tensor], temperature: float, epsilon: float, iterations: int) -> Tensor:
    """Mean cross-entropy of the crops with the codes of other global crops (SwAV, sec. 3).

    scores: crops of (N, K) cosines with the prototypes, the two global crops first. Codes spread the N images evenly
    over the K prototypes (Sinkhorn with entropy weight `epsilon`); no gradient through them. `ln K` at equal scores.
    """
    codes = [even_codes(each, epsilon, iterations) for each in scores[:2]]
    return swapped_prediction_loss(scores, codes, temperature)


@_full_precision
def swapped_prediction_loss(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float) -> Tensor:
    """`swav_loss` with given codes (N, K) of the first crops, which may come from more images than these N."""
    return _across_crops([each / temperature for each in scores], codes)


@torch.no_grad()
@_full_precision
def even_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (N, K) of images by their cosines (N, K) with prototypes: rows sum to 1, columns are even (SwAV, eq. 3-5).

    No gradient.
    """
    images, prototypes = scores.shape
    rows, columns = scores.new_full((1, prototypes), 1 / prototypes), scores.new_full((1, images), 1 / images)
    return sinkhorn(-scores.T[None], rows, columns, 1 / epsilon, iterations)[0].T * images


def _across_crops(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy over all (target, crop) pairs of different crops."""
    pairs = [(crop, target) for t, target in enumerate(targets) for c, crop in enumerate(logits) if c != t]
    return torch.stack([F.cross_entropy(crop, target) for crop, target in pairs]).mean()


# ---- maps: one vector per cell


@_full_precision
def sinkhorn(
    cost: Tensor, row_marginals: Tensor, column_marginals: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Transport plan (N, n, m) of the entropic problem with kernel `exp(-regularization * cost)` (Self-EMD, eq. 6-9).

    cost: (N, n, m); row_marginals: (N, n) and column_marginals: (N, m), not negative, of equal positive totals.
    Rows are scaled first, so columns are exact after every iteration and rows approach. Computed on logarithms, so a
    large `regularization` cannot underflow. Differentiable.
    """
    kernel = -regularization * cost
    log_rows, log_columns = row_marginals.log(), column_marginals.log()
    u = torch.zeros_like(log_columns)
    v = torch.zeros_like(log_rows)
    for _ in range(iterations):
        v = log_rows - (kernel + u[:, None, :]).logsumexp(2)
        u = log_columns - (kernel + v[:, :, None]).logsumexp(1)
    return (v[:, :, None] + kernel + u[:, None, :]).exp()


@_full_precision
def emd_loss(
    x: Tensor, y: Tensor, x_vector: Tensor, y_vector: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Mean of `2 - 2 <plan, 1 - cost>` with `cost_ij = 1 - cos(x_i, y_j)`, between 0 and 4 (Self-EMD, eq. 4-11).

    x, y: (N, C, h, w) or (N, C, cells), sizes may differ; x_vector, y_vector: (N, C), the images' global vectors.
    A cell weighs `relu(cos with the other image's vector) + 0.001` (eq. 13; floor and sum of 1 as in DeepEMD).
    Gradient reaches `x` alone, and only through the cost: plan and weights are constants, as unrolling them would let
    the network move mass to easy cells.
    """
    similarity = _cells(x) @ _cells(y.detach()).mT  # (N, n, m)
    with torch.no_grad():
        rows, columns = cell_weights(x, y_vector), cell_weights(y, x_vector)
        plan = sinkhorn(1 - similarity, rows, columns, regularization, iterations)
    return (2 - 2 * (plan * similarity).sum((1, 2))).mean()


def cell_weights(feature_map: Tensor, other_vector: Tensor) -> Tensor:
    """Weights (N, cells) of the cells of a map (N, C, h, w) or (N, C, cells): positive, of sum 1 (see `emd_loss`)."""
    agreement = _cells(feature_map) @ F.normalize(other_vector, dim=-1)[:, :, None]  # (N, cells, 1)
    weights = F.relu(agreement.squeeze(-1)) + 1e-3
    return weights / weights.sum(-1, keepdim=True)


@_full_precision
def local_contrastive_loss(target_map: Tensor, online_map: Tensor, points: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding each target cell's place among the online view's cells (LC-loss, eq. 2-4).

    target_map: (N, C, h, w); online_map: (N, C, h', w'); points: (N, h, w, 2), where each target cell's centre lies in
    the online view, xy as shares of its width and height, NaN outside. The loss between cell centres is the bilinear
    mix of the four neighbours' negative log-likelihoods, clamped at the border; 0 if no point is kept. No gradient
    to `target_map` and `points`.
    """
    kept, target, online = _local(target_map, online_map, points)
    logits = torch.einsum("nchw,ncs->nhws", target, online.flatten(2)) / temperature
    # Mixing is linear, so the mixed NLLs need only the mixed features; renormalising these would be another loss.
    nll = logits.logsumexp(-1) - (target * _at(online, points)).sum(1) / temperature
    return (nll * kept).sum() / kept.sum().clamp(min=1)


@_full_precision
def local_mse_loss(target_map: Tensor, online_map: Tensor, points: Tensor) -> Tensor:
    """Mean of `2 - 2 cos` of each target cell and its own place in the online view, 0 to 4 (LC-loss, table 6).

    Arguments, mixing between cell centres and gradient as in `local_contrastive_loss`.
    """
    kept, target, online = _local(target_map, online_map, points)
    distance = 2 - 2 * (target * _at(online, points)).sum(1)
    return (distance * kept).sum() / kept.sum().clamp(min=1)


def _local(target_map: Tensor, online_map: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask (N, h, w) of the kept points, and both maps as unit vectors."""
    kept = points.isfinite().all(-1)
    return kept, F.normalize(target_map.detach(), dim=1), F.normalize(online_map, dim=1)


def _at(feature_map: Tensor, points: Tensor) -> Tensor:
    """The map (N, C, h', w') at points (N, h, w, 2), shares of its sides: (N, C, h, w)."""
    grid = 2 * points.detach().to(feature_map.dtype).nan_to_num(0.5) - 1
    return F.grid_sample(feature_map, grid, mode="bilinear", padding_mode="border", align_corners=False)


@_full_precision
def dense_info_nce(
    query_map: Tensor,
    key_map: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    negatives: Tensor,
    temperature: float,
) -> Tensor:
    """InfoNCE of every query cell with the key cell whose backbone features are most similar (DenseCL, sec. 3).

    query_map, key_map: (N, D, s) projections; query_features, key_features: (N, C, s) backbone features, which choose
    the partner by cosine; negatives: (K, D). Mean over N * s cells. Gradient reaches `query_map` alone.
    """
    with torch.no_grad():
        partner = (_cells(query_features) @ _cells(key_features).mT).argmax(-1)  # (N, s)
        key = _cells(key_map)
        positive = key.gather(1, partner[:, :, None].expand(-1, -1, key.shape[-1]))  # (N, s, D)
    return _info_nce(_cells(query_map).flatten(0, 1), positive.flatten(0, 1), negatives, temperature)


@_full_precision
def pixpro_loss(
    online_map: Tensor,
    target_map: Tensor,
    online_centers: Tensor,
    target_centers: Tensor,
    bin_diagonal: Tensor,
    threshold: float = 0.7,
) -> Tensor:
    """Mean over images of -2 times the mean cosine of cells closer than `threshold`, one direction (PixPro, sec. 3).

    online_map, target_map: (N, D, h, w); *_centers: (N, h, w, 2), cell centres in one frame of the source image;
    bin_diagonal: (N,), the larger view's cell diagonal in that frame, the unit of distance. From -2 to 2; an image
    without such cells gives 0. No gradient to `target_map`.
    """
    distance = torch.cdist(
        online_centers.flatten(1, 2), target_centers.flatten(1, 2), compute_mode="donot_use_mm_for_euclid_dist"
    )
    near = distance / bin_diagonal[:, None, None] < threshold  # (N, hw, hw)
    return object_contrastive_loss(online_map.flatten(2).mT, target_map.flatten(2).mT, near)


# ---- objects: one vector per box


@_full_precision
def object_contrastive_loss(prediction: Tensor, target: Tensor, match: Tensor) -> Tensor:
    """Mean over images of `-2 sum(match * cos) / (sum(match) + 1e-6)`, from -2 to 2 (SoCo, eq. 5-6, its code).

    prediction: (N, P, D), target: (N, Q, D), the boxes of two views; match: (N, P, Q), bool or weights. All matched
    pairs of an image have equal weight; an image without a match gives 0 and counts. No gradient to `target`.
    """
    cosine = F.normalize(prediction, dim=-1) @ F.normalize(target.detach(), dim=-1).mT  # (N, P, Q)
    weights = match.to(cosine.dtype)
    return -2 * ((weights * cosine).sum((1, 2)) / (weights.sum((1, 2)) + 1e-6)).mean()
