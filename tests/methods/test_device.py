"""Every method's step on a GPU, as far as that can be seen without one: what lies where, and that nothing waits."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretended_device import HostWaits, moved, pretended_device
from small_methods import TRUNK
from test_contract import TRUNKS, small
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from boxless.data.unlabelled import Batch
from boxless.detectors.trunk import Trunk
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.method import MethodConfig
from boxless.proposals.baselines import grid_boxes
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.tasks.pretrain import PretrainTask, make_pretrain_optimizer

CHOSEN = ("byol", "soco", "joint", "pixpro", "detco", "dino", "swav")
"""Between them they have every part that another method has, but UP-DETR's: it matches boxes on the CPU, by SciPy."""


def batch_of(config: MethodConfig, count: int = 4) -> Batch:
    whole = torch.tensor([[0.0, 0, 120, 90]]).expand(count, 4)
    views = tuple(
        None
        if spec.resize_of is not None
        else View(
            torch.randint(0, 256, (count, 3, spec.size, spec.size), dtype=torch.uint8),
            crop_and_resize(whole, spec.size, spec.size),
        )
        for spec in config.views()
    )
    boxes = torch.from_numpy(grid_boxes(120, 90)).expand(count, -1, 4)
    return Batch(views, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), ())


def step(name: str) -> tuple[torch.Tensor, torch.device]:
    """The loss of a step on the pretended device, and that device."""
    recipe = PretrainRecipe(small(name), TRUNKS.get(name, TRUNK), PretrainOptim("lars"))  # type: ignore[arg-type]
    method = recipe.method.build(Trunk(recipe.trunk))
    assert isinstance(method, nn.Module)
    batch = batch_of(recipe.method)
    with pretended_device() as device:
        moved(method)
        adjust = make_pretrain_optimizer(method, recipe.optim)
        task = PretrainTask(recipe, SimpleNamespace(device=device), Path())  # type: ignore[arg-type]
        loss = task.loss(method, batch.to(device), 0)["loss"]
        loss.backward()
        adjust.step()
        method.after_step(0, 10)
    return loss, device


@pytest.mark.parametrize("name", CHOSEN)
def test_step_keeps_to_its_device_and_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows real devices alone
    loss, device = step(name)
    assert loss.device == device and loss.shape == ()


def test_pretended_device_finds_what_waits() -> None:
    with pretended_device() as device:
        values = torch.zeros(3, device=device)
        with pytest.raises(HostWaits):
            values.cpu()
        with pytest.raises(HostWaits):
            values.sum().item()
        with pytest.raises(HostWaits):
            torch.ones(3).to(device)
        for waits in (lambda: values[values > 0], lambda: values.nonzero()):
            with pytest.raises(DynamicOutputShapeException):
                waits()
        with pytest.raises(RuntimeError, match="device"):
            values + torch.ones(3)
