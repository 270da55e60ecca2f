"""Is a pretraining healthy? Cheap measures of its embeddings, and a verdict in words.

A network that gives every image the same answer minimises many self-supervised losses. Such a collapse shows in the
embeddings before it shows in a detector's AP: their spread and their effective rank go to nothing.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize

SPREAD_FLOOR = 0.05
"""Below this spread (1 = evenly over the sphere) embeddings count as the same."""
RANK_FLOOR = 1.5
"""Below this effective rank embeddings lie on a line."""
NARROWED = 0.2
"""Fraction of the largest effective rank below which the report warns, though embeddings differ."""
SHRUNK = 0.35
"""Fraction of the largest spread below which embeddings are collapsing. The lowest of any method's intact runs in
docs/methods.md is 0.52 (PixPro)."""
LOST = 0.15
"""Fraction of the largest effective rank below which embeddings are collapsing, if fewer than FEW are left.
Rates 100 times too large come to 0.13 and less; of whole runs of methods of images the lowest is DINO's 0.19
(docs/reliability.md)."""
FEW = 5.0
"""Effective rank that is enough however high it began: SoCo's, of hundreds of boxes, falls from 94 to 7 on images of
steel, where other methods' ends too, and its detectors gain (docs/studies.md)."""
PATIENCE = 5
"""Measures in a row below a floor that make a collapse, so that the jolts of a warm-up do not."""

LARGE_GRADIENT = 100
"""Gradient norm, as a multiple of its median over the last steps, that raises an alarm."""
EXPLODED = 10
"""Loss, as a multiple of the largest of the first losses, that counts as exploded."""
WINDOW = 100
"""Steps of a median, and steps in which an alarm is not raised twice."""
FEWEST = 20
"""Steps before the first alarm."""
LOST_SCALE = 1.0
"""Loss scale (65536 at the start) at and below which half precision is of no use."""


@dataclass(frozen=True)
class Alarm:
    """A scalar to warn about: `kind` is its name, `value` the factor by which it is too large or too small."""

    step: int
    kind: str
    value: float
    text: str


@dataclass(frozen=True)
class Health:
    """Measures of a batch's embeddings.

    Attributes:
        spread: standard deviation per dimension of the normalised embeddings times sqrt(D): 1 when they cover the
            sphere evenly, 0 when all are the same.
        rank: RankMe, the exponential of the singular values' entropy (Garrido et al., 2023, eq. 2): 1..min(N, D).
        alignment: mean squared distance of positive pairs on the sphere, 0..4 (Wang and Isola, 2020).
        uniformity: log of the mean Gaussian potential of all pairs, 0 (all the same) down to about -4.
    """

    spread: float
    rank: float
    alignment: float
    uniformity: float


@torch.no_grad()
def measure(online: Tensor, target: Tensor) -> Health:
    """Measure aligned embeddings (N, D) of the online network and its targets; nan if one is not finite."""
    if not (online.isfinite().all() and target.isfinite().all()):  # no singular values; the loop stops at the loss
        return Health(*[math.nan] * 4)
    x, y = normalize(online.float(), dim=1), normalize(target.float(), dim=1)
    spread = y.std(0, correction=0).square().mean().sqrt() * math.sqrt(y.shape[1])
    singular = torch.linalg.svdvals(y)
    shares = singular / singular.sum().clamp(min=1e-12)
    rank = torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum())
    alignment = (x - y).square().sum(1).mean() if x.shape == y.shape else torch.tensor(float("nan"))
    pairs = torch.pdist(y).square()
    uniformity = pairs.mul(-2).exp().mean().log() if len(pairs) else torch.tensor(0.0)
    values = torch.stack([spread, rank, alignment, uniformity]).tolist()  # one transfer for all
    return Health(*values)


@dataclass
class HealthRecord:
    """The measures and alarms of a run, and the verdict on them."""

    steps: list[int] = field(default_factory=list)
    values: list[Health] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    def add(self, step: int, health: Health) -> None:
        """Take the measures of a step."""
        self.steps.append(step)
        self.values.append(health)

    @property
    def collapsed_at(self) -> int | None:
        """The step from which on all embeddings were the same, or None."""
        low = [health.spread < SPREAD_FLOOR or health.rank < RANK_FLOOR for health in self.values]
        if len(low) < PATIENCE or not all(low[-PATIENCE:]):
            return None
        first = len(low) - next((n for n, is_low in enumerate(reversed(low)) if not is_low), len(low))
        return self.steps[first]

    @property
    def verdict(self) -> str:
        """One of: healthy, unstable, collapsing, collapsed at step N, unknown."""
        if not self.values:
            return "unknown"
        if self.collapsed_at is not None:
            return f"collapsed at step {self.collapsed_at}"
        spreads = [health.spread for health in self.values]
        ranks = [health.rank for health in self.values]
        shrunk = _mean(spreads[-PATIENCE:]) < max(SPREAD_FLOOR, SHRUNK * max(spreads))
        if shrunk or _mean(ranks[-PATIENCE:]) < min(FEW, LOST * max(ranks)):
            return "collapsing"
        return "unstable" if any(alarm.kind == "loss" for alarm in self.alarms) else "healthy"

    def report(self) -> str:
        """The verdict and its reasons in plain words, three lines, and one for each alarm, at most three."""
        if not self.values:
            return "pretraining: unknown (no measure was taken)"
        first, last = self.values[0], self.values[-1]
        words = {
            "healthy": "different images still get different embeddings",
            "unstable": "images still get different embeddings, but the loss exploded; lower the learning rate",
            "collapsing": "embeddings are growing alike; lower the learning rate or start from more momentum",
        }
        reason = words.get(self.verdict, "all images get the same embedding; nothing was learned from there on")
        ranks = [health.rank for health in self.values]
        if self.verdict == "healthy" and _mean(ranks[-PATIENCE:]) < NARROWED * max(ranks):
            reason += ", but along few directions: see what it buys on few labels before a longer run"
        return (
            f"pretraining: {self.verdict} - {reason}\n"
            f"  spread {first.spread:.2f} -> {last.spread:.2f} (1 = even, 0 = collapsed), "
            f"effective rank {first.rank:.0f} -> {last.rank:.0f}\n"
            f"  alignment {first.alignment:.2f} -> {last.alignment:.2f} (0 = positives agree), "
            f"uniformity {first.uniformity:.2f} -> {last.uniformity:.2f} (lower is more even)"
            + "".join(f"\n  {alarm.text}" for alarm in self.alarms[-3:])
        )


class AlarmDetector:
    """Watches `gradient_norm`, `loss` and `loss_scale`."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=FEWEST)
        self._first: float | None = None
        self._raised: dict[str, int] = {}

    def see(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        """Take a step's scalars, each step once and in order."""
        for alarm in (*self._gradient(step, values), *self._curve(step, values), *self._scale(step, values)):
            if step - self._raised.get(alarm.kind, -WINDOW) >= WINDOW:
                self._raised[alarm.kind] = step
                yield alarm

    def _gradient(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        norm = values.get("gradient_norm", 0.0)
        if not math.isfinite(norm):  # half precision's scale has been too large for a step, as it is now and then
            return
        if len(self._norms) >= FEWEST and (usual := median(self._norms)) > 0 and norm > LARGE_GRADIENT * usual:
            text = f"gradient norm {norm:.3g} at step {step}, {norm / usual:.0f} times its median of the last steps"
            yield Alarm(step, "gradient_norm", norm / usual, text)
        self._norms.append(norm)

    def _curve(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        self._losses.append(values["loss"])
        if len(self._losses) < FEWEST:
            return
        now = median(self._losses)
        self._first = max(map(abs, self._losses)) if self._first is None else self._first
        if now > EXPLODED * self._first > 0:
            text = f"loss {now:.3g} at step {step}, {now / self._first:.0f} times the largest of the first steps"
            yield Alarm(step, "loss", now / self._first, f"{text}; lower the learning rate")

    def _scale(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        scale = values.get("loss_scale", float("inf"))
        if scale <= LOST_SCALE:
            text = f"loss scale {scale:g} at step {step}: gradients overflow again and again; take precision=bf16-mixed"
            yield Alarm(step, "loss_scale", scale, text)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
