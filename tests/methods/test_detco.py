import math
from dataclasses import replace

import pytest
import torch
from small_methods import built, run, whole_views
from torch import Tensor, nn

from boxless.errors import UserError
from boxless.methods.detco import DetCoConfig

CONFIG = DetCoConfig(size=64, patch_size=32, cell_size=36, output=8, queue_length=16)
SIZES = [view.size for view in CONFIG.views()]
WEIGHTS = (0.1, 0.4, 0.7, 1.0)


def test_loss_is_the_papers() -> None:
    method, four = built(CONFIG, spread=0.2).eval(), whole_views(3, *SIZES)
    generator = torch.Generator().manual_seed(0)
    torch.randperm(3, generator=generator)  # the keys' shuffle
    patches = [view.patches(3, 32, generator).image.unflatten(0, (3, 9)) for view in four[2:]]

    def embed(encoder: nn.Module, heads: nn.ModuleList, images: Tensor) -> list[Tensor]:
        """C2..C5 of one image or its nine patches, each seen alone."""
        maps = [encoder(image[None]) for image in images]
        levels = [torch.cat([each[str(level)][0].double().flatten(1).mean(1) for each in maps]) for level in range(4)]
        return [nn.functional.normalize(head.double()(h), dim=0) for head, h in zip(heads, levels, strict=True)]

    total = 0.0
    found = run(method, four).loss.item()
    with torch.no_grad():
        for i in range(3):
            q_g = embed(method.encoder, method.global_heads, four[0].image[i][None])
            k_g = embed(method.target_encoder, method.target_global_heads, four[1].image[i][None])
            q_l = embed(method.encoder, method.local_heads, patches[0][i])
            k_l = embed(method.target_encoder, method.target_local_heads, patches[1][i])
            for level, weight in enumerate(WEIGHTS):
                past_g, past_l = (queue[level].vectors for queue in (method.global_queues, method.local_queues))
                for q, k, past in ((q_g, k_g, past_g), (q_l, k_l, past_l), (q_l, k_g, past_g)):  # eqs. 2, 5, 4
                    scores = [math.exp(float(q[level] @ other.double()) / 0.2) for other in (k[level], *past)]
                    total -= weight * math.log(scores[0] / sum(scores)) / 3
    assert found == pytest.approx(total, rel=1e-4)


def test_terms_are_weighed_and_left_out_with_what_they_alone_need() -> None:
    views = whole_views(3, *SIZES)
    whole = run(built(CONFIG), views)
    weighed = run(built(replace(CONFIG, term_weights=(0.5, 0.0, 2.0))), views)
    expected = 0.5 * whole.terms["global"] + 2 * whole.terms["global_local"]
    assert weighed.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    config = replace(CONFIG, term_weights=(1.0, 0.0, 0.0))
    assert config.views() == CONFIG.views()[:2]
    method = built(config)
    alone = run(method, views[:2])
    assert alone.loss.item() == pytest.approx(whole.terms["global"].item(), rel=1e-5) and list(alone.terms) == [
        "global"
    ]
    before = method.local_queues[0].vectors.clone()
    method.after_step(0, 10)
    assert torch.equal(method.local_queues[0].vectors, before)
    for wrong in ({"term_weights": (0.0, 0.0, 0.0)}, {"level_weights": (1.0, -1.0, 0.0, 0.0)}):
        with pytest.raises(UserError, match=f"method.{next(iter(wrong))}: .* expected none below 0 and one above"):
            built(replace(CONFIG, **wrong))


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    method = built(CONFIG)
    for heads in (method.global_heads, method.local_heads, method.target_global_heads, method.target_local_heads):
        for head in heads:
            nn.init.zeros_(head[2].weight)
            nn.init.ones_(head[2].bias)
    for queue in (*method.global_queues, *method.local_queues):
        queue.vectors.fill_(8**-0.5)
    output = run(method, whole_views(3, *SIZES))
    assert output.loss.item() == pytest.approx(3 * sum(WEIGHTS) * math.log(17), rel=1e-5)
    for name in ("global", "local", "global_local"):
        assert output.terms[name].item() == pytest.approx(sum(WEIGHTS) * math.log(17), rel=1e-5)


def test_keys_enter_their_own_queue_after_the_step() -> None:
    method = built(CONFIG)
    queues = [*method.global_queues, *method.local_queues]
    before = [queue.vectors.clone() for queue in queues]
    outputs = [run(method, whole_views(3, *SIZES, seed=seed)) for seed in (1, 2)]  # as accumulation does
    assert all(torch.equal(queue.vectors, old) for queue, old in zip(queues, before, strict=True))
    method.after_step(0, 10)
    for queue, old in zip(queues, before, strict=True):
        assert torch.equal(queue.vectors[6:], old[6:]) and (queue.vectors[:6] != old[:6]).all()
        torch.testing.assert_close(queue.vectors.norm(dim=1), torch.ones(16))
    assert torch.equal(method.global_queues[3].vectors[:6], torch.cat([output.target for output in outputs]))
    distinct = torch.stack([queue.vectors[0] for queue in queues])
    assert torch.pdist(distinct).min() > 0.01
    run(method.eval(), whole_views(3, *SIZES))
    method.after_step(1, 10)
    assert int(queues[0].next_row) == 6


def test_norms_see_parts_of_the_batch_and_keys_in_other_company() -> None:
    method = built(replace(CONFIG, norm_groups=2))
    seen: list[Tensor] = []
    for encoder in (method.encoder, method.target_encoder):
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    four = whole_views(4, *SIZES)
    run(method, four)
    assert [len(images) for images in seen] == [2] * 4 + [18] * 4  # q_g, k_g, q_l, k_l
    assert torch.equal(torch.cat(seen[:2]), four[0].image)
    rows = [int((four[1].image == image).all(dim=(1, 2, 3)).nonzero()) for image in torch.cat(seen[2:4])]
    assert sorted(rows) == [0, 1, 2, 3] and rows != [0, 1, 2, 3]
    patches = torch.cat(seen[6:]).unflatten(0, (4, 9))
    for row, nine in zip(rows, patches, strict=True):  # in reading order, of the same image
        windows = four[3].image[row].unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 77, 77, 32, 32)
        for number, patch in enumerate(nine):
            top, left = 36 * (number // 3), 36 * (number % 3)
            cell = windows[:, top : top + 5, left : left + 5].permute(1, 2, 0, 3, 4)
            assert (cell == patch).all(dim=(2, 3, 4)).any()
