from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from boxless.training.nan_guard import NanGuard, NonFiniteStep


def steps(
    guard: NanGuard, module: nn.Linear, broken: int | None, steps: int = 5
) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps that add 1 to the weight, as the loop has them; the loss of one of them is not finite."""
    for step in range(steps):
        loss = torch.tensor(float("inf") if step == broken else step)
        yield from guard.check(step, f"batch {step}", {"loss": loss, "gradient_norm": loss * 2}, loss)
        with torch.no_grad():
            module.weight += 1
    yield from guard.settle()


@pytest.mark.parametrize("late", [False, True])
def test_all_steps_are_looked_at_once_and_in_order(late: bool) -> None:
    module = nn.Linear(1, 1)
    assert [(step, values["loss"]) for step, values in steps(NanGuard(module, late), module, None)] == [
        (step, float(step)) for step in range(5)
    ]


@pytest.mark.parametrize("broken", [0, 2, 4])
@pytest.mark.parametrize("late", [False, True])
def test_batch_and_state_of_a_broken_step_are_those_before_its_update(late: bool, broken: int) -> None:
    module = nn.Linear(1, 1)
    nn.init.zeros_(module.weight)
    with pytest.raises(NonFiniteStep, match=rf"^step {broken}: loss = inf$") as caught:
        list(steps(NanGuard(module, late), module, broken))
    error = caught.value
    assert (error.step, error.batch, error.own) == (broken, f"batch {broken}", True)
    assert error.state["weight"].item() == broken
    assert module.weight.item() == broken + late  # looking late, one update went through


def test_an_overflow_is_the_loss_scales_to_mend_but_not_a_broken_loss() -> None:
    guard, nan = NanGuard(nn.Linear(1, 1), late=False, overflows=True), torch.tensor(float("nan"))

    def look(loss: Tensor) -> list[object]:
        return list(guard.check(0, None, {"loss": loss, "gradient_norm": nan}, loss))

    assert look(torch.tensor(1.0))
    with pytest.raises(NonFiniteStep, match=r"^step 0: loss = nan$"):
        look(nan)
