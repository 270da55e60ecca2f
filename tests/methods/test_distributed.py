"""Two processes with half a batch each train as one process with the whole batch does."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import sized
from torch import Tensor, distributed, multiprocessing, nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.method import MethodConfig
from boxless.methods.modules import Queue, Shuffle
from boxless.training.distributed import agreed, gather, own
from boxless.training.sync_norms import synchronize_norms

BATCH, SIDE, WORLD = 16, 32, 2
TRUNK = TrunkConfig("resnet18", fpn_channels=8, box_head_width=16)

SIZES = {
    "size": 32,
    "local_size": 24,
    "local_crops": 2,
    "patch_size": 16,
    "cell_size": 16,
    "hidden": 16,
    "output": 8,
    "queue_length": 48,
    "norm_groups": WORLD,
    "prototypes": 12,
}
"""Small values of hyper-parameters, by field; patches fill their cells, so that no place is drawn."""
CHANGES: dict[str, dict[str, object]] = {"swav": {"queue_length": BATCH, "queue_start": 0.0}}
"""By method: SwAV's queue is of use once full, and so in the second step."""
GATHERING = ("simclr", "moco", "densecl", "detco", "barlow", "vicreg", "dino", "swav")
"""Methods whose losses or queues look at the batches of all processes."""
OWN_NORMS = {"moco", "densecl", "detco"}
"""Those whose batch norms must not be synchronised, but keep to a process's part of the batch."""

each_method = pytest.mark.parametrize("name", GATHERING)


def config_of(name: str) -> MethodConfig:
    return sized(name, SIZES, **CHANGES.get(name, {}))


def train(name: str, rank: int, world: int) -> dict[str, Any]:
    """Two steps of SGD on this process's share of the batches: losses, the mean of all gradients, the state after."""
    torch.manual_seed(0)
    config = config_of(name)
    method = config.build(Trunk(TRUNK))
    assert isinstance(method, nn.Module)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    method = method.double()
    if name not in OWN_NORMS:
        method = synchronize_norms(method)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    losses, gradients = [], {}
    for step in range(2):
        views = tuple(share(view, rank, world) for view in draw_views(config, step))
        nothing = torch.zeros(BATCH // world, 1, 4)
        output = method(views, nothing, nothing[..., 0] > 0, torch.Generator().manual_seed(step))
        output.loss.backward()
        losses.append(mean(output.loss.detach()))
        for key, parameter in method.named_parameters():
            if parameter.grad is not None:
                parameter.grad = mean(parameter.grad)
                gradients[f"{step}.{key}"] = sample(parameter.grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(step, 100)
    queues = {key: module.state_dict() for key, module in method.named_modules() if isinstance(module, Queue)}
    state = {key: sample(value) for key, value in method.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state, "queues": queues}


def sample(values: Tensor) -> Tensor:
    """Some 500 of the values: a whole ResNet in double precision takes long to write."""
    return values.flatten()[:: max(1, values.numel() // 500)].clone()


def draw_views(config: MethodConfig, step: int) -> list[View]:
    """A batch of noise, each view showing the whole source image."""
    generator = torch.Generator().manual_seed(step)
    views = []
    for spec in config.views():
        image = torch.rand(BATCH, 3, spec.size, spec.size, dtype=torch.float64, generator=generator)
        side = torch.full((BATCH,), spec.size)
        views.append(View(image, crop_and_resize(torch.tensor([[0.0, 0.0, SIDE, SIDE]] * BATCH), side, side)))
    return views


def share(view: View, rank: int, world: int) -> View:
    return View(view.image.chunk(world)[rank], view.from_source.chunk(world)[rank])


def mean(values: Tensor) -> Tensor:
    """Over all processes, as distributed training takes it of gradients."""
    if distributed.is_initialized():
        values = values.clone()
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def pieces(rank: int) -> dict[str, Any]:
    """What a shuffle, a gather and an agreement give this process, from rows that say where they come from."""
    rows = torch.arange(6.0).view(3, 2) + 10 * rank
    shuffle = Shuffle(3, torch.Generator().manual_seed(rank), rows.device)
    dealt = shuffle(rows)
    back = shuffle.undo(dealt)
    weights = torch.arange(1.0, 13.0).view(6, 2)
    leaf = rows.clone().requires_grad_()
    (gather(leaf) * weights * (rank + 1)).sum().backward()
    return {"dealt": dealt, "own": own(back), "all": back, "agreed": agreed(rows.clone()), "gradient": leaf.grad}


def boxes_in_first_half(rank: int, world: int) -> tuple[Tensor, dict[str, Tensor]]:
    """SoCo's loss and gradients where the second half of the batch, and so the second process, has no box at all."""
    torch.manual_seed(0)
    config = sized("soco", SIZES, boxes=2, small_size=SIDE)
    method = config.build(Trunk(TRUNK))
    assert isinstance(method, nn.Module)
    method = synchronize_norms(method)
    halves = [share(view, rank, world) for view in draw_views(config, 0)]
    views = tuple(view.with_image(view.image.float()) for view in halves)
    boxes = torch.tensor([[0.0, 0, 30, 30], [4, 4, 20, 16], [10, 2, 30, 30]]).expand(BATCH, 3, 4)
    valid = torch.zeros(BATCH, 3, dtype=torch.bool)
    valid[: BATCH // 2] = True
    boxes, valid = (each.chunk(world)[rank] for each in (boxes, valid))
    loss = method(views, boxes, valid, torch.Generator().manual_seed(0)).loss
    loss.backward()
    gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return mean(loss.detach()), {key: sample(mean(gradient)) for key, gradient in gradients.items()}


def uneven_norm(rank: int) -> dict[str, Tensor]:
    """Output, gradients and statistics of a batch norm with 2 rows on one process and 5 on the other."""
    norm, values, weights = norm_inputs()
    norm = synchronize_norms(norm)
    assert type(norm) is not nn.BatchNorm2d
    rows = slice(0, 2) if rank == 0 else slice(2, 7)
    mine = values[rows].clone().requires_grad_()
    out = norm(mine)
    (out * weights[rows]).sum().backward()
    found = {"out": out.detach(), "gradient": mine.grad, "affine": norm.weight.grad, **norm.state_dict()}
    with torch.autocast("cpu"):
        rounded = copy.deepcopy(norm).float()(values[rows].bfloat16())
    return found | {"rounded": rounded.detach()}


def norm_inputs() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
    values, weights = torch.randn(2, 7, 3, 2, 2, dtype=torch.float64, generator=generator)
    return norm, 3 + 2 * values, weights


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    results = {name: train(name, rank, WORLD) for name in GATHERING}
    results |= {"pieces": pieces(rank), "norm": uneven_norm(rank), "boxes": boxes_in_first_half(rank, WORLD)}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@each_method
def test_losses_and_gradients_are_those_of_one_process(name: str, found: list[dict[str, Any]]) -> None:
    alone = train(name, 0, 1)
    close = {"atol": 1e-9, "rtol": 1e-6}
    for each in (result[name] for result in found):
        torch.testing.assert_close(each["losses"], alone["losses"], **close)
        torch.testing.assert_close(each["gradients"], alone["gradients"], **close)
        torch.testing.assert_close(each["queues"], alone["queues"], **close)


@each_method
def test_processes_stay_alike(name: str, found: list[dict[str, Any]]) -> None:
    first, second = (result[name]["state"] for result in found)
    apart = {key for key in first if not torch.equal(first[key], second[key])}
    if name in OWN_NORMS:
        assert apart and all("running_" in key for key in apart)
    else:
        assert not apart


def test_process_without_boxes_keeps_pace_with_one_that_has_some(found: list[dict[str, Any]]) -> None:
    loss, gradients = boxes_in_first_half(0, 1)
    for their_loss, theirs in (result["boxes"] for result in found):
        torch.testing.assert_close(their_loss, loss, atol=1e-5, rtol=1e-4)
        assert gradients.keys() <= theirs.keys()
        for key, gradient in theirs.items():  # alone, a level on which no box falls has no gradient
            expected = gradients.get(key, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-2)


def test_shuffled_rows_come_back(found: list[dict[str, Any]]) -> None:
    rows = torch.cat([torch.arange(6.0).view(3, 2) + 10 * rank for rank in range(WORLD)])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))  # the first process's
    for rank, each in enumerate(result["pieces"] for result in found):
        assert torch.equal(each["dealt"], rows[order].chunk(WORLD)[rank])
        assert torch.equal(each["all"], rows) and torch.equal(each["own"], rows.chunk(WORLD)[rank])
        assert torch.equal(each["agreed"], rows[:3])
        assert torch.equal(each["gradient"], 3 * torch.arange(1.0, 13.0).view(6, 2).chunk(WORLD)[rank])


def test_synchronised_norm_is_the_norm_of_all_rows(found: list[dict[str, Any]]) -> None:
    norm, values, weights = norm_inputs()
    values.requires_grad_()
    out = norm(values)
    (out * weights).sum().backward()
    each = [result["norm"] for result in found]
    torch.testing.assert_close(torch.cat([r["out"] for r in each]), out.detach())
    torch.testing.assert_close(torch.cat([r["gradient"] for r in each]), values.grad)
    torch.testing.assert_close(sum(r["affine"] for r in each), norm.weight.grad)
    rounded = torch.cat([r["rounded"] for r in each])
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), out.detach(), rtol=0.02, atol=0.02)
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(each[0][key], value)
        torch.testing.assert_close(each[1][key], value)
