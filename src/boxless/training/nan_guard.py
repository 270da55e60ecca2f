"""Detection of a step whose loss or gradient is not finite, before it changes a weight."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteStep(Exception):
    """A loss, one of its terms or the norm of all gradients became NaN or infinite.

    Attributes:
        step: at which it happened.
        batch: batch of the step, this process's share.
        state: state of the module before that step's update, as in its `state_dict`; running statistics know the batch.
        own: true if the loss of this process's own share was not finite.
    """

    def __init__(self, message: str, step: int, batch: Any, state: dict[str, Tensor], own: bool) -> None:
        super().__init__(message)
        self.step, self.batch, self.state, self.own = step, batch, state, own


@dataclass
class _Held:
    """A step's scalars, on their way from the device."""

    step: int
    batch: Any
    names: list[str]
    scalars: Tensor
    own_loss: Tensor
    there: torch.cuda.Event | None


class NanGuard:
    """Checks each step's scalars before the optimizer changes weights.

    To wait for a GPU at each step would leave it idle. There a step is looked at when the next one's backward pass is
    under way, and the weights are copied before each update, within the device's memory.

    Args:
        module: trained module.
        late: if true, check one step later.
        overflows: true if gradients may be infinite, as with a loss scale, which then skips the update.
    """

    def __init__(self, module: nn.Module, late: bool, overflows: bool = False) -> None:
        self.module, self.late, self.overflows = module, late, overflows
        self._held: _Held | None = None
        state = module.state_dict() if late else {}
        # Extra state is no part of the network but a number such as the share of the run that is over.
        self._live = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
        self._copy = {name: value.clone() for name, value in self._live.items()}

    def check(
        self, step: int, batch: Any, scalars: Mapping[str, Tensor], own_loss: Tensor
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Take a step's scalars when its gradients are there; yields (step, values) of those that were found finite.

        Raises:
            NonFiniteStep: for this step or, looking late, for the one before.
        """
        device = own_loss.device
        together = torch.stack([value.detach().to(device, torch.float32) for value in scalars.values()])
        held = _Held(step, batch, list(scalars), together, own_loss.detach(), None)
        if not self.late:
            yield self._verified(held, None)
            return
        if device.type == "cuda":
            held.scalars = torch.empty(len(scalars), pin_memory=True).copy_(together, non_blocking=True)
            held.there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            held.there.record()
        yield from self.settle()
        self._held = held
        torch._foreach_copy_(list(self._copy.values()), list(self._live.values()))

    def settle(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Check the remaining scalars, for example before a checkpoint, which is useless after a broken loss."""
        held, self._held = self._held, None
        if held is not None:
            yield self._verified(held, self._copy)

    def _verified(self, held: _Held, state: dict[str, Tensor] | None) -> tuple[int, dict[str, float]]:
        if held.there is not None:
            held.there.synchronize()
        values = dict(zip(held.names, held.scalars.tolist(), strict=True))
        broken = {name: value for name, value in values.items() if not math.isfinite(value)}
        if self.overflows or len(broken) > 1:  # a broken loss has broken gradients
            broken.pop("gradient_norm", None)
        if broken:
            named = ", ".join(f"{name} = {value}" for name, value in broken.items())
            before = {**self.module.state_dict(), **(state or {})}
            own = not math.isfinite(float(held.own_loss))
            raise NonFiniteStep(f"step {held.step}: {named}", held.step, held.batch, before, own)
        return held.step, values
