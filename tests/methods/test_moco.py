import math

import pytest
import torch
from torch import nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.contract import MethodOutput
from boxless.methods.moco import MoCo, MoCoConfig
from boxless.methods.parts import in_groups


def moco(**changes: object) -> MoCo:
    """A small MoCo whose key encoder differs from its query encoder."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=8, box_head_width=8))
    method = MoCoConfig(hidden=16, output=8, queue_length=12, **changes).build(trunk)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return method.train()


def views(count: int = 4) -> tuple[View, View]:
    images = torch.randn(2, count, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return View(images[0], identity(count)), View(images[1], identity(count))


def run(method: MoCo, pair: tuple[View, ...], seed: int = 0) -> MethodOutput:
    nothing = torch.zeros(len(pair[0].image), 1, 4)
    return method(pair, nothing, nothing[..., 0] > 0, torch.Generator().manual_seed(seed))


def embed(encoder: nn.Module, head: nn.Module, image: torch.Tensor) -> torch.Tensor:
    h = encoder(image[None])["3"][0].flatten(1).mean(1)[None]
    return nn.functional.normalize(head(h)[0].double(), dim=0)


def test_loss_is_the_papers() -> None:
    method = moco().eval()
    first, second = views()
    total = 0.0
    with torch.no_grad():
        for i in range(4):
            q = embed(method.encoder, method.head, first.image[i])
            k = embed(method.target_encoder, method.target_head, second.image[i])
            negatives = [math.exp(float(q @ n.double()) / 0.2) for n in method.queue.vectors]
            positive = math.exp(float(q @ k) / 0.2)
            total -= math.log(positive / (positive + sum(negatives)))  # v1, eq. 1
    assert run(method, (first, second)).loss.item() == pytest.approx(total / 4, rel=1e-4)


def test_keys_enter_the_queue_after_the_step_in_the_batchs_order() -> None:
    method = moco()
    start = method.queue.vectors.clone()
    keys = [run(method, views(), seed).target for seed in (1, 2)]  # two batches of one step, shuffled unequally
    assert torch.equal(method.queue.vectors, start)
    method.after_step(0, 10)
    assert torch.equal(method.queue.vectors[8:], start[8:])
    torch.testing.assert_close(method.queue.vectors[:8], torch.cat(keys))
    torch.testing.assert_close(method.queue.vectors.norm(dim=1), torch.ones(12))
    method.after_step(1, 10)
    assert method.queue.next_row == 8
    run(method, views(), 3)
    method.after_step(2, 10)
    assert method.queue.next_row == 0 and not (method.queue.vectors[:, None] == start).all(-1).any()


def test_batch_statistics_are_those_of_a_groups_images() -> None:
    """Queries in the batch's order, keys in a shuffled one."""
    method = moco(norm_groups=2)
    first, second = views()
    output = run(method, (first, second), seed=1)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    assert {*order[:2].tolist()} not in ({0, 1}, {2, 3})
    with torch.no_grad():
        q = torch.cat([method.head(method.encoder(x)["3"].mean((2, 3))) for x in first.image.split(2)])
        shuffled = second.image[order].split(2)
        k = torch.cat([method.target_head(method.target_encoder(x)["3"].mean((2, 3))) for x in shuffled])
    torch.testing.assert_close(output.online, q)
    torch.testing.assert_close(output.target[order], nn.functional.normalize(k, dim=1))


@pytest.mark.parametrize(("rows", "groups", "sizes"), [(8, 2, [4, 4]), (5, 8, [3, 2]), (1, 8, [1]), (6, 1, [6])])
def test_no_group_is_too_small_for_statistics(rows: int, groups: int, sizes: list[int]) -> None:
    seen = []
    values = torch.arange(float(rows))
    assert torch.equal(in_groups(lambda part: (seen.append(len(part)), part)[1], values, groups), values)
    assert seen == sizes


def test_views_are_augmented_alike() -> None:
    first, second = MoCoConfig().views()
    assert first == second and first.scale == (0.2, 1.0)
    look = first.photometric
    assert (look.jitter, look.brightness, look.contrast, look.saturation, look.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert (look.flip, look.gray, look.blur, look.solarize) == (0.5, 0.2, 0.5, 0.0)
