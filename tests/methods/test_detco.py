import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.geometry.affine import identity
from boxless.geometry.view import View
from boxless.methods.contract import MethodOutput
from boxless.methods.detco import DetCo, DetCoConfig

CONFIG = DetCoConfig(size=64, patch_size=32, cell_size=36, output=8, queue_length=16)
WEIGHTS = (0.1, 0.4, 0.7, 1.0)


def detco(config: DetCoConfig = CONFIG) -> DetCo:
    """A small DetCo whose key encoder differs from its query encoder."""
    torch.manual_seed(0)
    method = config.build(Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return method


def views(count: int = 3, seed: int = 1, cell: int = 36) -> tuple[View, ...]:
    generator = torch.Generator().manual_seed(seed)
    sides = (64, 64, 3 * cell, 3 * cell)
    return tuple(View(torch.randn(count, 3, side, side, generator=generator), identity(count)) for side in sides)


def run(method: DetCo, four: tuple[View, ...]) -> MethodOutput:
    nothing = torch.zeros(len(four[0].image), 1, 4)
    return method(four, nothing, nothing[..., 0] > 0, torch.Generator().manual_seed(2))


def test_loss_is_the_papers() -> None:
    method, four = detco().eval(), views()
    generator = torch.Generator().manual_seed(2)
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


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    method = detco()
    for heads in (method.global_heads, method.local_heads, method.target_global_heads, method.target_local_heads):
        for head in heads:
            nn.init.zeros_(head[2].weight)
            nn.init.ones_(head[2].bias)
    for queue in (*method.global_queues, *method.local_queues):
        queue.vectors.fill_(8**-0.5)
    output = run(method, views())
    assert output.loss.item() == pytest.approx(3 * sum(WEIGHTS) * math.log(17), rel=1e-5)
    for name in ("global", "local", "global_local"):
        assert output.terms[name].item() == pytest.approx(sum(WEIGHTS) * math.log(17), rel=1e-5)


def test_order_of_the_images_does_not_matter() -> None:
    method = detco(replace(CONFIG, cell_size=32)).eval()  # patches fill their cells: nothing is drawn
    four, order = views(cell=32), torch.tensor([2, 0, 1])
    permuted = tuple(View(view.image[order], view.from_source) for view in four)
    assert run(method, four).loss.item() == pytest.approx(run(method, permuted).loss.item(), rel=1e-5)


def test_keys_enter_their_own_queue_after_the_step() -> None:
    method = detco()
    queues = [*method.global_queues, *method.local_queues]
    before = [queue.vectors.clone() for queue in queues]
    outputs = [run(method, views(seed=seed)) for seed in (1, 2)]  # as accumulation does
    assert all(torch.equal(queue.vectors, old) for queue, old in zip(queues, before, strict=True))
    method.after_step(0, 10)
    for queue, old in zip(queues, before, strict=True):
        assert torch.equal(queue.vectors[6:], old[6:]) and (queue.vectors[:6] != old[:6]).all()
        torch.testing.assert_close(queue.vectors.norm(dim=1), torch.ones(16))
    assert torch.equal(method.global_queues[3].vectors[:6], torch.cat([output.target for output in outputs]))
    distinct = torch.stack([queue.vectors[0] for queue in queues])
    assert torch.pdist(distinct).min() > 0.01
    run(method.eval(), views())
    method.after_step(1, 10)
    assert int(queues[0].next_row) == 6


def test_norms_see_parts_of_the_batch_and_keys_in_other_company() -> None:
    method = detco(replace(CONFIG, norm_groups=2))
    seen: list[Tensor] = []
    for encoder in (method.encoder, method.target_encoder):
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    four = views(count=4)
    run(method, four)
    assert [len(images) for images in seen] == [2, 2, 18, 18] * 2
    assert torch.equal(torch.cat(seen[:2]), four[0].image)
    rows = [int((four[1].image == image).all(dim=(1, 2, 3)).nonzero()) for image in torch.cat(seen[4:6])]
    assert sorted(rows) == [0, 1, 2, 3] and rows != [0, 1, 2, 3]
    patches = torch.cat(seen[6:]).unflatten(0, (4, 9))
    for row, nine in zip(rows, patches, strict=True):  # in reading order, of the same image
        windows = four[3].image[row].unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 77, 77, 32, 32)
        for number, patch in enumerate(nine):
            top, left = 36 * (number // 3), 36 * (number % 3)
            cell = windows[:, top : top + 5, left : left + 5].permute(1, 2, 0, 3, 4)
            assert (cell == patch).all(dim=(2, 3, 4)).any()


def test_views_are_moco_v2s_and_pirls() -> None:
    i_q, i_k, p_q, p_k = DetCoConfig().views()
    assert i_q == i_k and p_q == p_k
    assert (i_q.size, i_q.scale, p_q.size, p_q.scale) == (224, (0.2, 1.0), 255, (0.6, 1.0))
    look = i_q.photometric
    assert (look.flip, look.jitter, look.gray, look.blur, look.solarize) == (0.5, 0.8, 0.2, 0.5, 0.0)
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.4, 0.4, 0.4, 0.1)
    half = DetCoConfig().at_size(112)
    assert (half.size, half.patch_size, half.photometric.blur_sigma) == (112, 32, (0.05, 1.0))
