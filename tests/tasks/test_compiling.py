"""What is compiled and when; by a compiler that traces as the real one and then runs what it traced as it is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from boxless.data.unlabelled import Batch
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.soco import SoCoConfig
from boxless.proposals.baselines import grid_boxes
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.tasks.compiling import compile_parts, compiling_pays
from boxless.tasks.pretrain import PretrainTask, make_pretrain_optimizer

SOCO = SoCoConfig(size=64, small_size=32, hidden=16, output=8)
RECIPE = PretrainRecipe(SOCO, TrunkConfig("resnet18", fpn_channels=16, box_head_width=32), PretrainOptim("sgd", 0.05))


def test_long_runs_on_a_gpu_compile_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compiling_pays(RECIPE, 2000) and not compiling_pays(RECIPE, 1999)
    changing = replace(RECIPE, trunk=TrunkConfig(neck="transformer"))
    assert not compiling_pays(changing, 2000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not compiling_pays(RECIPE, 2000)


def test_a_processor_compiles_only_when_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("boxless.tasks.pretrain.compiling_pays", lambda recipe, steps: True)
    fabric = Fabric(accelerator="cpu", devices=1)
    for asked, compiled in ((None, False), (False, False), (True, True)):
        assert PretrainTask(replace(RECIPE, compile=asked), fabric, tmp_path).compiled is compiled


def test_compiled_parts_learn_the_same_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        traced.append(graph)
        return graph

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: real(self, backend=compiler, **options))
    whole = torch.tensor([[0.0, 0, 120, 90]]).expand(4, 4)
    pixels = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = (*(View(image, crop_and_resize(whole, 64, 64)) for image in pixels), None)
    boxes = torch.from_numpy(grid_boxes(120, 90)).expand(4, -1, 4)
    batch = Batch(views, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), ())
    fabric = Fabric(accelerator="cpu")

    def trained(compiled: bool) -> tuple[list[float], list[str]]:
        torch.manual_seed(0)
        trunk = Trunk(RECIPE.trunk)
        method = SOCO.build(trunk)
        if compiled:
            compile_parts(method, trunk)
        placed, optimizer = fabric.setup(method, make_pretrain_optimizer(method, RECIPE.optim))
        task = PretrainTask(RECIPE, fabric, Path())
        losses = []
        for step in range(3):
            loss = task.loss(placed, batch, step)["loss"]
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(step, 10)
            losses.append(float(loss.detach()))
        return losses, list(method.state_dict())

    losses, names = trained(compiled=False)
    ours, kept = trained(compiled=True)
    torch._dynamo.reset()
    assert ours == pytest.approx(losses, abs=1e-5) and kept == names
    assert len(traced) == 4  # of the online and of the target network, on views of two sizes, in all steps
