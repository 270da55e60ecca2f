"""What every method promises, over all methods that recipes know."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_methods import TRUNK, sized
from torch import Tensor, nn

from boxless.data.transforms.color import Photometric, augment
from boxless.data.unlabelled import Batch, ViewDataset, collate, fill_resized
from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.interop.weights import load_trunk, save_trunk
from boxless.methods.all import METHODS
from boxless.methods.byol import BYOLConfig
from boxless.methods.dino import DINOConfig
from boxless.methods.lc import LocalConfig
from boxless.methods.method import MethodConfig
from boxless.methods.modules import Queue
from boxless.proposals.baselines import grid_boxes
from boxless.recipes.overrides import keys
from boxless.recipes.schema import Precision, PretrainOptim, PretrainRecipe
from boxless.tasks.pretrain import PretrainTask, make_pretrain_optimizer
from boxless.training.checkpoint import load_checkpoint, save_checkpoint
from boxless.training.device import make_fabric

WIDTH, HEIGHT, IMAGES = 120, 90, 4
TRUNKS = {
    "soco-c4": TrunkConfig("resnet18", neck="c4"),
    "up-detr": TrunkConfig(
        "resnet18", neck="transformer", transformer=TransformerConfig(32, 4, 2, 2, 64, dropout=0.0, queries=20)
    ),
}
"""Of methods that need another trunk."""
NO_GRADIENT = {"up-detr": ("decoder.layers.0.self_attn.", ".k_proj.bias")}
"""What the loss does not depend on: DETR's queries hold nothing yet where they first look at one another, and softmax
is blind to what all its inputs share."""
SMALL_FIELDS = {
    "size": 64,
    "small_size": 32,
    "fourth_size": 48,
    "hidden": 32,
    "output": 16,
    "queue_length": 32,
    "prototypes": 24,
    "freeze_backbone": False,
    "patch_size": 32,
    "cell_size": 36,
    "local_size": 32,
    "local_crops": 2,
    "byol": BYOLConfig(size=64, hidden=32, output=16),
    "dino": DINOConfig(size=64, local_size=32, local_crops=2, hidden=32, output=16, prototypes=24),
    "local": LocalConfig(hidden=32, output=16),
}
"""Small values of hyper-parameters, by field; a method takes those that it has."""
LARGE_VIEWS = {
    "soco": {"size": 224, "small_size": 112, "boxes": 12},
    "soco-star": {"size": 224, "small_size": 112, "fourth_size": 96, "boxes": 40},
    "joint": {"size": 224, "boxes": 40},
}
"""What a method needs for its gradient to reach all that it trains (SoCo: boxes for each pyramid level)."""
FALLS = {"byol": 1.5, "soco": 1.5, "soco-star": 1.5, "joint": 2.0}
"""How far the loss of one batch falls in seven steps; elsewhere by a tenth."""
RATES = {"moco": 0.001}
"""Learning rates to overfit at."""
NO_COLOUR = Photometric(flip=0.5, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)

each_method = pytest.mark.parametrize("name", sorted(METHODS))


def small(name: str, **changes: object) -> MethodConfig:
    """A method's config with everything that costs time made small."""
    return sized(name, SMALL_FIELDS, **changes)


def trunk_of(name: str) -> Trunk:
    return Trunk(TRUNKS.get(name, TRUNK))


class Folder:
    """Images whose red is x and whose green is y, each with its own blue, with a grid of boxes."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / f"{row}.png" for row in range(IMAGES)]
        x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
        for row, file in enumerate(self.files):
            blue = np.random.default_rng(row).integers(0, 256, (HEIGHT // 10, WIDTH // 10)).repeat(10, 0).repeat(10, 1)
            Image.fromarray(np.stack([2 * x, 2 * y, blue], -1).astype(np.uint8)).save(file)

    def __len__(self) -> int:
        return IMAGES

    def path(self, row: int) -> str:
        return str(self.files[row])

    def boxes(self, row: int) -> np.ndarray:
        return grid_boxes(WIDTH, HEIGHT)

    def size(self, row: int) -> tuple[int, int]:
        return WIDTH, HEIGHT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("images"))


class Training:
    """A method in training, as a run has it."""

    def __init__(
        self, config: MethodConfig, folder: Folder, seed: int = 0, lr: float = 0.01, precision: Precision = "32-true"
    ) -> None:
        torch.manual_seed(seed)
        self.trunk = trunk_of(config.name)
        self.method = config.build(self.trunk)
        assert isinstance(self.method, nn.Module)
        with torch.no_grad():  # zeroed gammas would stop the gradient, equal ones hide mistakes
            for parameter in self.method.parameters():
                if parameter.ndim == 1 and parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        for target, online in followers(self.method):
            target.data.copy_(online.data)
        recipe = PretrainRecipe(method=config, optim=PretrainOptim("adamw", base_lr=lr))
        self.optimizer = make_pretrain_optimizer(self.method, recipe.optim)
        dataset = ViewDataset(folder, config.views(), folder if config.needs_boxes else None, seed=0)
        self.batch: Batch = collate([dataset[0, row] for row in range(IMAGES)], config.views())
        fabric = make_fabric(precision)
        self.task, self.placed = PretrainTask(recipe, fabric, Path()), fabric.setup(self.method)

    def losses(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The loss of a batch and its terms."""
        return self.task.loss(self.placed, batch, step)

    def step(self, step: int, draws: int | None = None) -> dict[str, float]:
        """A whole step; `draws` is the step whose random numbers it takes."""
        terms = self.losses(self.batch, step if draws is None else draws)
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(step, 100)
        return {name: value.item() for name, value in terms.items()}


def followers(method: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Target parameters with the online ones that they follow: `target_x` follows `x`."""
    parameters = dict(method.named_parameters())
    return [(value, parameters[key.replace("target_", "")]) for key, value in parameters.items() if "target_" in key]


@each_method
def test_every_hyper_parameter_is_explained(name: str) -> None:
    entries = keys(METHODS[name]())
    assert [key for key, entry in entries.items() if "." not in key and not entry.help] == ["name"]


@each_method
def test_loss_is_finite_and_embeddings_pair_up(name: str, folder: Folder) -> None:
    training = Training(small(name), folder)
    terms = training.losses(training.batch, 0)
    assert terms["loss"].requires_grad and all(value.isfinite() for value in terms.values())
    assert not any(value.requires_grad for key, value in terms.items() if key != "loss")
    output = training.task.output
    assert output.online.shape == output.target.shape and len(output.online) >= IMAGES
    assert not output.online.requires_grad and not output.target.requires_grad


@each_method
def test_in_bf16_it_sees_the_same_places_and_has_the_same_loss_but_for_rounding(name: str, folder: Folder) -> None:
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        views, boxes, *_ = inputs
        seen.append(torch.cat([*(view.from_source.flatten() for view in views), boxes.flatten()]))

    terms = []
    for precision in ("32-true", "bf16-mixed"):
        training = Training(small(name), folder, precision=precision)
        training.method.register_forward_pre_hook(look)
        terms.append({key: value.item() for key, value in training.losses(training.batch, 0).items()})
    assert torch.equal(*seen) and not torch.equal(seen[0], seen[0].bfloat16().float())
    assert terms[1]["loss"] == pytest.approx(terms[0]["loss"], rel=0.1, abs=0.02)
    assert terms[1]["loss"] != terms[0]["loss"]  # bf16 was at work


@each_method
def test_gradient_reaches_all_that_is_trained_and_no_target(name: str, folder: Folder) -> None:
    training = Training(small(name, **LARGE_VIEWS.get(name, {})), folder)
    training.losses(training.batch, 0)["loss"].backward()
    missing = [
        f"{part}.{key}"
        for part in training.method.trains
        for key, value in training.trunk.parts[part].named_parameters()
        if not any(silent in key for silent in NO_GRADIENT.get(name, ()))
        and (value.grad is None or not value.grad.abs().sum() > 0)
    ]
    assert not missing
    for part in set(training.trunk.parts) - set(training.method.trains):
        assert all(value.grad is None for value in training.trunk.parts[part].parameters())
    others = [k for k, v in training.method.named_parameters() if v.requires_grad and v.grad is None]
    assert not others
    targets = [target for target, _ in followers(training.method)]
    assert all(target.grad is None and not target.requires_grad for target in targets)
    optimised = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(target) for target in targets}


@each_method
def test_target_moves_once_per_step_by_the_formula(name: str, folder: Folder) -> None:
    training = Training(small(name), folder)
    pairs = followers(training.method)
    if not hasattr(training.method, "momentum"):
        assert not pairs
        return
    before = [target.clone() for target, _ in pairs]
    training.losses(training.batch, 0)["loss"].backward()
    training.losses(training.batch, 1)["loss"].backward()  # as accumulation does
    training.optimizer.step()
    assert all(torch.equal(a, target) for a, (target, _) in zip(before, pairs, strict=True))
    training.method.after_step(30, 100)
    momentum = training.method.momentum(30, 100)
    assert 0.9 <= momentum < 1
    for a, (target, online) in zip(before, pairs, strict=True):
        torch.testing.assert_close(target, momentum * a + (1 - momentum) * online, atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(a, target) for a, (target, _) in zip(before, pairs, strict=True))


@each_method
def test_resumed_step_is_the_same_bit_for_bit(name: str, folder: Folder, tmp_path: Path) -> None:
    first = Training(small(name), folder)
    for step in range(2):
        first.step(step)
    save_checkpoint(tmp_path, 2, {"module": first.method.state_dict(), "optimizer": first.optimizer.state_dict()})
    expected = first.step(2)
    second = Training(small(name), folder, seed=1)
    state = load_checkpoint(tmp_path)
    second.method.load_state_dict(state["module"])
    second.optimizer.load_state_dict(state["optimizer"])
    assert second.step(2) == expected
    ours, theirs = second.method.state_dict(), first.method.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@each_method
def test_one_batch_is_overfitted(name: str, folder: Folder) -> None:
    training = Training(small(name), folder, lr=RATES.get(name, 0.003))
    moving = any(isinstance(module, Queue) or hasattr(module, "center") for module in training.method.modules())
    if moving:  # a queue would fill with this batch's own keys, a centre take away what its images share
        training.method.after_step = lambda step, total: None
    losses = [training.step(step, draws=0)["loss"] for step in range(7)]
    assert np.mean(losses[-3:]) < losses[0] - FALLS.get(name, 0.1 * abs(losses[0])), losses


@each_method
def test_trained_parts_load_into_a_fresh_trunk(name: str, folder: Folder, tmp_path: Path) -> None:
    training = Training(small(name), folder)
    training.step(0)
    save_trunk(tmp_path / "weights.safetensors", training.trunk, training.method.trains)
    torch.manual_seed(5)
    fresh = trunk_of(name)
    report = load_trunk(fresh, tmp_path / "weights.safetensors", minimum=1.0)
    assert report.shares == {part: float(part in training.method.trains) for part in fresh.parts}
    assert not report.unused and not report.mismatched
    for part in training.method.trains:
        ours, theirs = fresh.parts[part].state_dict(), training.trunk.parts[part].state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@each_method
def test_views_know_where_their_pixels_come_from(name: str, folder: Folder) -> None:
    specs = [dataclasses.replace(spec, photometric=NO_COLOUR) for spec in small(name).views()]
    dataset = ViewDataset(folder, specs, folder, seed=3)
    batch = collate([dataset[epoch, row] for epoch in range(2) for row in range(IMAGES)], specs)
    generator = torch.Generator().manual_seed(0)
    flipped = set()
    for cut, spec in zip(fill_resized(batch, specs), specs, strict=True):
        view = augment(cut, spec.photometric, generator)
        assert view.size == (spec.size, spec.size)
        places = view.cell_centres(spec.size, spec.size)[:, 2:-2, 2:-2]  # the edges are smoothed one-sidedly
        seen = view.image.permute(0, 2, 3, 1)[:, 2:-2, 2:-2, :2] * 255 / 2
        # Half a unit from truncation when drawn, half from each rounding after a resize, at 2 units per px.
        torch.testing.assert_close(seen, places, atol=1.0, rtol=0)
        flipped |= set((view.from_source[:, 0, 0] < 0).tolist())
    assert flipped == {True, False}
