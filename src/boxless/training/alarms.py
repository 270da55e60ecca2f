"""Alarms: what a training's scalars say that a person should hear of, though it goes on."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

LARGE_GRADIENT = 100
"""Times its median of the last steps from which a gradient's norm is told of."""
EXPLODED = 10
"""Times the largest of the first losses from which a learning curve has exploded."""
WINDOW = 100
"""Steps that a median is of, and that the same alarm is not told again in."""
FEWEST = 20
"""Steps that are seen before any alarm."""
LOST_SCALE = 1.0
"""A loss scale (of 65536 at the start) from which down half precision has no gain left to offer."""


@dataclass(frozen=True)
class Alarm:
    """Something that was told: `kind` is the scalar's name, `value` how many times too large or small it was."""

    step: int
    kind: str
    value: float
    text: str


class Alarms:
    """Watches `gradient_norm`, `loss` and `loss_scale`."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=FEWEST)
        self._first: float | None = None
        self._told: dict[str, int] = {}

    def see(self, step: int, values: Mapping[str, float]) -> Iterator[Alarm]:
        """Take a step's scalars, each step once and in order."""
        for alarm in (*self._gradient(step, values), *self._curve(step, values), *self._scale(step, values)):
            if step - self._told.get(alarm.kind, -WINDOW) >= WINDOW:
                self._told[alarm.kind] = step
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
