import math

import pytest
import torch
from small_methods import built, run, whole_views
from torch import Tensor

from boxless.methods.densecl import DenseCL, DenseCLConfig

CONFIG = DenseCLConfig(hidden=16, output=8, queue_length=12, dense_weight=0.3, norm_groups=2)


def unit(vector: Tensor) -> Tensor:
    return vector.double() / vector.double().norm()


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor) -> float:
    """Eqs. 1 and 3 of one query, temperature 0.2."""
    scores = [math.exp(float(query @ key) / 0.2) for key in (positive, *negatives.double())]
    return -math.log(scores[0] / sum(scores))


@torch.no_grad()
def slow_loss(method: DenseCL, query: Tensor, key: Tensor) -> tuple[float, float]:
    """Global and dense loss of one image's views, cell by cell."""
    f, g = method.encoder(query[None])["3"][0], method.target_encoder(key[None])["3"][0]
    whole = info_nce(
        unit(method.projector(f.mean((1, 2))[None])[0]),
        unit(method.target_projector(g.mean((1, 2))[None])[0]),
        method.queue.vectors,
    )
    r, t = method.dense_projector(f[None])[0], method.target_dense_projector(g[None])[0]
    places = [(y, x) for y in range(3) for x in range(3)]
    dense = 0.0
    for y, x in places:
        likeness = [float(unit(f[:, y, x]) @ unit(g[:, v, u])) for v, u in places]
        v, u = places[likeness.index(max(likeness))]  # eq. 4
        dense += info_nce(unit(r[:, y, x]), unit(t[:, v, u]), method.dense_queue.vectors) / len(places)
    return whole, dense


def test_loss_is_the_papers() -> None:
    method, pair = built(CONFIG).eval(), whole_views(4, 96, 96)
    whole, dense = torch.tensor([slow_loss(method, *images) for images in zip(*(v.image for v in pair), strict=True)]).T
    output = run(method, pair)
    assert output.terms["global"].item() == pytest.approx(whole.mean().item(), abs=1e-4)
    assert output.terms["dense"].item() == pytest.approx(dense.mean().item(), abs=1e-4)
    assert output.loss.item() == pytest.approx((0.7 * whole + 0.3 * dense).mean().item(), abs=1e-4)  # eq. 5
    assert not torch.equal(output.terms["global"], output.terms["dense"])


def test_queues_take_the_keys_of_all_batches_of_a_step() -> None:
    method = built(CONFIG)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # so that the keys can be made again
    batches = [whole_views(4, 96, 96, seed=seed) for seed in (1, 2)]
    before = method.queue.vectors.clone(), method.dense_queue.vectors.clone()
    keys, dense_keys = [], []
    for pair in batches:
        run(method, pair)
        with torch.no_grad():
            g = method.target_encoder(pair[1].image)["3"]
            keys += [unit(k) for k in method.target_projector(g.mean((2, 3)))]
            dense_keys += [unit(t.flatten(1).mean(1)) for t in method.target_dense_projector(g)]  # one per image
    assert torch.equal(method.queue.vectors, before[0])
    method.after_step(0, 10)
    for queue, first, pushed in zip((method.queue, method.dense_queue), before, (keys, dense_keys), strict=True):
        torch.testing.assert_close(queue.vectors[:8].double(), torch.stack(pushed), atol=1e-5, rtol=0)
        assert torch.equal(queue.vectors[8:], first[8:])
    held = method.queue.vectors.clone()
    run(method.eval(), batches[0])
    method.after_step(1, 10)
    assert torch.equal(method.queue.vectors, held)
