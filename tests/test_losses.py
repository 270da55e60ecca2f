"""What holds for every loss: where gradient goes, that it is right, precision, order of the images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from boxless import losses


class Case(NamedTuple):
    loss: Callable[..., Tensor]
    inputs: Callable[[], dict[str, Any]]
    learns: set[str]  # arguments that gradient reaches; it stops at the other tensors
    per_image: set[str]  # arguments whose first dimension is the batch
    options: dict[str, Any]
    smooth: bool = True  # False where constants inside depend on an argument that learns: tested beside the formula
    scale_free: bool = True  # takes cosines


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double)


def points() -> Tensor:
    inside = torch.rand(3, 2, 3, 2, dtype=torch.double)
    return inside.masked_fill(torch.rand(3, 2, 3, 1) < 0.3, float("nan"))


CASES = {
    "byol": Case(
        losses.byol_loss,
        lambda: dict(prediction=normal(3, 5), target=normal(3, 5)),
        {"prediction"},
        {"prediction", "target"},
        {},
    ),
    "info_nce": Case(
        losses.info_nce_loss,
        lambda: dict(query=normal(3, 5), positive=normal(3, 5), negatives=normal(6, 5)),
        {"query"},
        {"query", "positive"},
        dict(temperature=0.2),
    ),
    "nt_xent": Case(
        losses.nt_xent_loss,
        lambda: dict(z1=normal(3, 5), z2=normal(3, 5)),
        {"z1", "z2"},
        {"z1", "z2"},
        dict(temperature=0.3),
    ),
    "barlow_twins": Case(
        losses.barlow_twins_loss,
        lambda: dict(z1=normal(6, 4), z2=normal(6, 4)),
        {"z1", "z2"},
        {"z1", "z2"},
        dict(redundancy_weight=0.01),
        scale_free=False,  # up to the 1e-5 in its norm
    ),
    "vicreg": Case(
        losses.vicreg_loss,
        lambda: dict(z1=normal(6, 4), z2=normal(6, 4)),
        {"z1", "z2"},
        {"z1", "z2"},
        {},
        scale_free=False,
    ),
    "dino": Case(
        losses.dino_loss,
        lambda: dict(
            student=[normal(3, 5) for _ in range(4)], teacher=[normal(3, 5) for _ in range(2)], center=normal(5)
        ),
        {"student"},
        {"student", "teacher"},
        dict(student_temperature=0.5, teacher_temperature=0.3),
        scale_free=False,
    ),
    "swav": Case(
        losses.swav_loss,
        lambda: dict(scores=[normal(3, 5) for _ in range(4)]),
        {"scores"},
        {"scores"},
        dict(temperature=0.5, epsilon=0.5, iterations=3),
        smooth=False,
        scale_free=False,
    ),
    "emd": Case(
        losses.emd_loss,
        lambda: dict(x=normal(3, 5, 2, 3), y=normal(3, 5, 2, 2), x_vector=normal(3, 5), y_vector=normal(3, 5)),
        {"x"},
        {"x", "y", "x_vector", "y_vector"},
        dict(regularization=5.0, iterations=10),
        smooth=False,
    ),
    "local_contrastive": Case(
        losses.local_contrastive_loss,
        lambda: dict(target_map=normal(3, 5, 2, 3), online_map=normal(3, 5, 3, 2), points=points()),
        {"online_map"},
        {"target_map", "online_map", "points"},
        dict(temperature=0.2),
    ),
    "dense_info_nce": Case(
        losses.dense_info_nce,
        lambda: dict(
            query_map=normal(3, 5, 4),
            key_map=normal(3, 5, 4),
            query_features=normal(3, 7, 4),
            key_features=normal(3, 7, 4),
            negatives=normal(6, 5),
        ),
        {"query_map"},
        {"query_map", "key_map", "query_features", "key_features"},
        dict(temperature=0.2),
    ),
    "pixpro": Case(
        losses.pixpro_loss,
        lambda: dict(
            online_map=normal(3, 5, 2, 3),
            target_map=normal(3, 5, 2, 3),
            online_centers=torch.rand(3, 2, 3, 2).double(),
            target_centers=torch.rand(3, 2, 3, 2).double(),
            bin_diagonal=torch.full((3,), 0.5).double(),
        ),
        {"online_map"},
        {"online_map", "target_map", "online_centers", "target_centers", "bin_diagonal"},
        {},
    ),
    "object_contrastive": Case(
        losses.object_contrastive_loss,
        lambda: dict(prediction=normal(3, 4, 5), target=normal(3, 6, 5), match=torch.rand(3, 4, 6) < 0.4),
        {"prediction"},
        {"prediction", "target", "match"},
        {},
    ),
}


def tensors(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def mapped(inputs: dict[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    return {
        name: [change(name, t) for t in value] if isinstance(value, list) else change(name, value)
        for name, value in inputs.items()
    }


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def every(keep: Callable[[Case], bool] = lambda _: True) -> pytest.MarkDecorator:
    chosen = {name: case for name, case in CASES.items() if keep(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


@every()
def test_gradient_reaches_the_online_side_only(case: Case) -> None:
    inputs = mapped(case.inputs(), lambda _, t: t.requires_grad_() if t.is_floating_point() else t)
    case.loss(**inputs, **case.options).backward()
    for name, value in inputs.items():
        for tensor in tensors(value):
            if name in case.learns:
                assert tensor.grad is not None, name
                assert tensor.grad.abs().sum() > 0, name
            else:
                assert tensor.grad is None, name


@every(lambda case: case.smooth)
def test_gradient_is_right(case: Case) -> None:
    inputs = case.inputs()
    names = sorted(case.learns)
    learning = [t.requires_grad_() for name in names for t in tensors(inputs[name])]

    def loss(*given: Tensor) -> Tensor:
        left = list(given)
        for name in names:
            count = len(tensors(inputs[name]))
            now, left = left[:count], left[count:]
            inputs[name] = now if isinstance(inputs[name], list) else now[0]
        return case.loss(**inputs, **case.options)

    assert torch.autograd.gradcheck(loss, learning)


@every()
def test_sixteen_bits_are_raised_and_autocast_is_left(case: Case) -> None:
    def halved(_: str, tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    half = mapped(case.inputs(), halved)
    full = mapped(half, lambda _, t: t.float() if t.is_floating_point() else t)
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.loss(**half, **case.options)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, case.loss(**full, **case.options))
    assert case.loss(**case.inputs(), **case.options).dtype == torch.float64


@every()
def test_order_of_the_images_does_not_matter(case: Case) -> None:
    inputs = case.inputs()
    count = len(tensors(inputs[min(case.per_image)])[0])
    order = torch.randperm(count)
    shuffled = mapped(inputs, lambda name, t: t[order] if name in case.per_image else t)
    torch.testing.assert_close(case.loss(**shuffled, **case.options), case.loss(**inputs, **case.options))


@every(lambda case: case.scale_free)
def test_length_of_the_vectors_does_not_matter(case: Case) -> None:
    inputs = case.inputs()
    coordinates = {"points", "online_centers", "target_centers", "bin_diagonal", "match"}
    scaled = mapped(inputs, lambda name, t: t if name in coordinates else t * 37.0)
    torch.testing.assert_close(case.loss(**scaled, **case.options), case.loss(**inputs, **case.options))
