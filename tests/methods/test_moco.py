import math
from dataclasses import replace

import pytest
import torch
from small_methods import built, pooled_alone, run, whole_views
from torch.nn.functional import normalize

from boxless.methods.moco import MoCoConfig
from boxless.methods.modules import in_groups

CONFIG = MoCoConfig(hidden=16, output=8, queue_length=12)


def test_loss_is_the_papers() -> None:
    method = built(CONFIG).eval()
    first, second = whole_views(4, 48, 48)
    total = 0.0
    with torch.no_grad():
        for i in range(4):
            q = normalize(method.head(pooled_alone(method.encoder, first.image[i]))[0].double(), dim=0)
            k = normalize(method.target_head(pooled_alone(method.target_encoder, second.image[i]))[0].double(), dim=0)
            negatives = [math.exp(float(q @ n.double()) / 0.2) for n in method.queue.vectors]
            positive = math.exp(float(q @ k) / 0.2)
            total -= math.log(positive / (positive + sum(negatives)))  # v1, eq. 1
    assert run(method, (first, second)).loss.item() == pytest.approx(total / 4, rel=1e-4)


def test_keys_enter_the_queue_after_the_step_in_the_batchs_order() -> None:
    method, views = built(CONFIG), whole_views(4, 48, 48)
    start = method.queue.vectors.clone()
    keys = [run(method, views, seed).target for seed in (1, 2)]  # two batches of one step, shuffled unequally
    assert torch.equal(method.queue.vectors, start)
    method.after_step(0, 10)
    assert torch.equal(method.queue.vectors[8:], start[8:])
    torch.testing.assert_close(method.queue.vectors[:8], torch.cat(keys))
    torch.testing.assert_close(method.queue.vectors.norm(dim=1), torch.ones(12))
    method.after_step(1, 10)
    assert method.queue.next_row == 8
    run(method, views, 3)
    method.after_step(2, 10)
    assert method.queue.next_row == 0 and not (method.queue.vectors[:, None] == start).all(-1).any()


def test_batch_statistics_are_those_of_a_groups_images() -> None:
    """Queries in the batch's order, keys in a shuffled one."""
    method = built(replace(CONFIG, norm_groups=2))
    first, second = whole_views(4, 48, 48)
    output = run(method, (first, second), seed=1)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    assert {*order[:2].tolist()} not in ({0, 1}, {2, 3})
    with torch.no_grad():
        q = torch.cat([method.head(method.encoder(x)["3"].mean((2, 3))) for x in first.image.split(2)])
        shuffled = second.image[order].split(2)
        k = torch.cat([method.target_head(method.target_encoder(x)["3"].mean((2, 3))) for x in shuffled])
    torch.testing.assert_close(output.online, q)
    torch.testing.assert_close(output.target[order], normalize(k, dim=1))


@pytest.mark.parametrize(("rows", "groups", "sizes"), [(8, 2, [4, 4]), (5, 8, [3, 2]), (1, 8, [1]), (6, 1, [6])])
def test_no_group_is_too_small_for_statistics(rows: int, groups: int, sizes: list[int]) -> None:
    seen = []
    values = torch.arange(float(rows))
    assert torch.equal(in_groups(lambda part: (seen.append(len(part)), part)[1], values, groups), values)
    assert seen == sizes
