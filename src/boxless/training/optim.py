"""The optimiser pieces that the papers share: LARS, learning-rate curves, the moving average of a target."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import ParamsT


class Lars(Optimizer):
    """SGD with momentum whose steps are scaled per weight tensor (You et al. 2017, as in BYOL, Barlow Twins, SoCo).

    Per tensor `p` with gradient `g`: `g += weight_decay * p`, `g *= trust_coefficient * |p| / |g|` (factor 1 where
    either norm is 0), `m = momentum * m + g`, `p -= lr * m`. Tensors of at most one dimension (biases, norms) take
    plain momentum SGD at the full rate: no decay, no scaling. With `adapt_biases` all tensors are treated alike and the
    factor is `trust_coefficient * |p| / (|g| + weight_decay * |p| + 1e-8)`, with g before the decay, as in SwAV's code
    (apex's LARC). The tensors of one group live on one device. Gradients are left as they were, and nothing waits for
    the device.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt_biases: bool = False,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
        self.adapt_biases = adapt_biases
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            alike = [p for p in params if p.ndim > 1 or self.adapt_biases]
            self._descend(alike, group, adapted=True)
            self._descend([p for p in params if p.ndim <= 1 and not self.adapt_biases], group, adapted=False)
        return loss

    def _descend(self, params: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        if not params:
            return
        updates = [p.grad for p in params if p.grad is not None]
        if adapted:
            trust = group["weight_decay"], group["trust_coefficient"], self.adapt_biases
            updates = _trusted(params, updates, *trust)
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _trusted(
    params: list[Tensor], grads: list[Tensor], weight_decay: float, coefficient: float, apart: bool
) -> list[Tensor]:
    """Decayed gradients, each scaled by its trust ratio.

    The decay counts in the ratio's norm or, if `apart`, beside it.
    """
    updates = list(torch._foreach_add(grads, params, alpha=weight_decay))
    weight_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(grads if apart else updates))
    if apart:
        update_norms = torch.where(update_norms > 0, update_norms + weight_decay * weight_norms + 1e-8, 0.0)
    usable = (weight_norms > 0) & (update_norms > 0)
    ratios = torch.where(usable, coefficient * weight_norms / update_norms, 1.0)
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return updates


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for SGD or AdamW: weights that decay, then biases and norms (1-D) that do not."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, momentum: float = 0.9, adapt_biases: bool = False
) -> Optimizer:
    """The optimiser of a recipe: lars, sgd (both with momentum) or adamw; `adapt_biases` is for LARS."""
    if name == "lars":
        return Lars(groups, lr, momentum, adapt_biases=adapt_biases)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, foreach=True)
    return AdamW(groups, lr=lr, fused=None if torch.cuda.is_available() else True)


def ema_momentum(step: int, total_steps: int, base: float) -> float:
    """Momentum of the target at `step` (0..total_steps): from `base` to 1 along a cosine (BYOL, sec. 3.3)."""
    progress = min(step / total_steps, 1.0)
    return 1.0 - (1.0 - base) * (math.cos(math.pi * progress) + 1.0) / 2.0


@torch.no_grad()
def ema_update(target_params: Iterable[Tensor], online_params: Iterable[Tensor], momentum: float) -> None:
    """Move each target parameter in place: `target = momentum * target + (1 - momentum) * online`.

    Pass parameters only: the target's batch-norm buffers come from its own forward passes, as in all official codes.
    """
    torch._foreach_lerp_(list(target_params), list(online_params), 1.0 - momentum)


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, peak: float, start: float = 0.0, final: float = 0.0
) -> float:
    """Learning rate at `step`: a line from `start` to `peak`, then a cosine down to `final` at `total_steps`.

    SoCo and PixPro: `start=peak / 100`, `final=1e-6`; BYOL, Barlow Twins and DINO start from 0.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return final + (peak - final) * (math.cos(math.pi * progress) + 1.0) / 2.0


def warmup_flat_cosine(
    step: int, total_steps: int, warmup_steps: int, warmup_factor: float, peak: float, final: float, flat: float = 0.5
) -> float:
    """Learning rate at `step`: a line up to `peak`, flat until the share `flat` of the run, a cosine down to `final`.

    DEIM's shape (configs/base/deim.yml), with the warm-up in proportion to the run.
    """
    if step < warmup_steps:
        return peak * (warmup_factor + (1.0 - warmup_factor) * step / warmup_steps)
    progress = min(max(step / total_steps - flat, 0.0) / (1.0 - flat), 1.0)
    return final + (peak - final) * (math.cos(math.pi * progress) + 1.0) / 2.0


def warmup_multistep(
    step: int,
    milestones: Sequence[int],
    warmup_steps: int = 1000,
    warmup_factor: float = 0.001,
    gamma: float = 0.1,
    peak: float = 0.02,
) -> float:
    """Learning rate at `step`: `peak` times `gamma` per milestone (ascending steps) passed; detectron2's schedule.

    During the first `warmup_steps` it also grows along a line from `warmup_factor` to 1.
    """
    share = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    return peak * (warmup_factor + (1.0 - warmup_factor) * share) * gamma ** bisect_right(milestones, step)


def warmup_polynomial(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 0.001,
    power: float = 0.9,
    peak: float = 0.01,
    final: float = 1e-4,
) -> float:
    """Learning rate at `step`: from `peak` to `final` by `(1 - step / total_steps) ** power`; MMSegmentation's `poly`.

    During the first `warmup_steps` it also grows along a line from `warmup_factor` to 1.
    """
    share = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    left = math.pow(max(1.0 - step / total_steps, 0.0), power)
    return ((peak - final) * left + final) * (warmup_factor + (1.0 - warmup_factor) * share)
