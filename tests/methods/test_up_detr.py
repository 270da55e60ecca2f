from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.methods.method import MethodOutput
from boxless.methods.up_detr import UPDETR, UPDETRConfig, groups

WIDTH, HEIGHT, SIZE, PATCH = 100, 60, 64, 32
PATCHES, QUERIES = 3, 6


def method(**changes: object) -> UPDETR:
    torch.manual_seed(0)
    sizes = TransformerConfig(16, heads=2, encoder_layers=1, decoder_layers=2, feedforward=24, queries=QUERIES)
    trunk = Trunk(TrunkConfig("resnet18", neck="transformer", transformer=sizes))
    made = UPDETRConfig(size=SIZE, smallest=1.0, patches=PATCHES, patch_size=PATCH, **changes).build(trunk)  # type: ignore[arg-type]
    for name, parameter in made.named_parameters():
        if name.endswith("bn2.weight"):  # zeroed gammas hide what a block does
            parameter.data.fill_(1)
    return made


def windows() -> Tensor:
    """Windows of 2 images with 3 patches each, in source px."""
    corner = torch.rand(2, PATCHES, 2, generator=torch.Generator().manual_seed(1))
    size = torch.rand(2, PATCHES, 2, generator=torch.Generator().manual_seed(2)) * 0.4 + 0.1
    start = corner * (1 - size)
    return torch.cat([start, start + size], -1) * torch.tensor([WIDTH, HEIGHT] * 2)


def views() -> tuple[View, ...]:
    generator = torch.Generator().manual_seed(3)
    whole = torch.tensor([[0.0, 0, WIDTH, HEIGHT]]).expand(2, 4)
    shown = [(SIZE, whole), *((PATCH, window) for window in windows().unbind(1))]
    return tuple(
        View(torch.randn(2, 3, size, size, generator=generator), crop_and_resize(window, size, size))
        for size, window in shown
    )


def run(made: UPDETR, seen: tuple[View, ...]) -> MethodOutput:
    none = torch.zeros(2, 0, 4)
    return made(seen, none, none[..., 0].bool(), torch.Generator().manual_seed(0))


def test_loss_is_the_papers_formula() -> None:
    made = method().double().eval()
    seen = tuple(View(view.image.double(), view.from_source.double()) for view in views())
    output = run(made, seen)

    total = torch.zeros((), dtype=torch.float64)
    features = made.backbone(seen[0].image)["3"]
    patches = torch.stack([made.backbone(view.image)["3"].mean((2, 3)) for view in seen[1:]], 1)
    embeddings = made.transformer.query_position_embeddings.weight
    queries = torch.stack(
        [
            torch.stack([embeddings[n] + made.patch_to_query(patches[b, n // 2]) for n in range(QUERIES)])
            for b in range(2)
        ]
    )
    cells = torch.ones(2, 2, 2, dtype=torch.bool)
    states = made.transformer(features, cells, queries, torch.tensor([0, 0, 1, 1, 2, 2]))
    truth = windows().double() / torch.tensor([WIDTH, HEIGHT] * 2)
    for layer in states:
        weighted, weights = torch.zeros((), dtype=torch.float64), 0.0
        for b in range(2):
            chance = made.classify(layer[b]).softmax(-1)
            found = made.transformer.boxes(layer[b])
            corners = box_convert(found, "cxcywh", "xyxy")
            distance = torch.cdist(found, box_convert(truth[b], "xyxy", "cxcywh"), p=1)
            iou = generalized_box_iou(corners, truth[b])
            cost = 5 * distance - chance[:, :1] - 2 * iou
            best = min(
                permutations(range(QUERIES), PATCHES),
                key=lambda rows, cost=cost: sum(cost[n, m] for m, n in enumerate(rows)),
            )
            for n in range(QUERIES):
                weight, label = (1.0, 0) if n in best else (PATCHES / QUERIES, 1)
                weighted, weights = weighted - weight * chance[n, label].log(), weights + weight
            for m, n in enumerate(best):
                rebuilt, true = made.align(layer[b, n]), patches[b, m]
                difference = rebuilt / rebuilt.norm() - true / true.norm()
                part = 5 * distance[n, m] + 2 * (1 - iou[n, m]) + difference.square().sum()
                total = total + part / (2 * PATCHES)
        total = total + weighted / weights
    torch.testing.assert_close(output.loss, total)
    assert set(output.terms) == {"classes", "l1", "giou", "reconstruction"}
    assert output.online.shape == output.target.shape == (2 * PATCHES, 512)
    torch.testing.assert_close(output.target, patches.flatten(0, 1))  # in the order of image and patch


def test_boxes_are_where_the_patches_were_cut() -> None:
    image, *patches = views()
    objects = UPDETR._objects(image, tuple(patches))
    corners = box_convert(objects.boxes, "cxcywh", "xyxy") * torch.tensor([WIDTH, HEIGHT] * 2)
    torch.testing.assert_close(corners, windows(), atol=1e-3, rtol=0)
    mirrored = UPDETR._objects(image.mirrored(torch.tensor([True, False])), tuple(patches)).boxes
    torch.testing.assert_close(mirrored[0, :, 0], 1 - objects.boxes[0, :, 0])
    torch.testing.assert_close(mirrored[1], objects.boxes[1])


@pytest.mark.parametrize(("queries", "patches"), [(100, 10), (100, 1), (100, 20), (100, 7), (6, 4), (5, 5)])
def test_queries_are_dealt_evenly(queries: int, patches: int) -> None:
    group = groups(queries, patches)
    sizes = group.bincount(minlength=patches)
    assert group.tolist() == sorted(group.tolist()) and sizes.sum() == queries
    assert set(sizes.tolist()) <= {queries // patches, -(-queries // patches)} and len(sizes) == patches
    if (queries, patches) == (100, 10):
        assert (group[:, None] == group).sum() == 1000


def test_order_of_images_and_with_equal_queries_of_patches_does_not_matter() -> None:
    made = method().eval()
    seen = views()
    swapped = tuple(View(view.image.flip(0), view.from_source.flip(0)) for view in seen)
    torch.testing.assert_close(run(made, swapped).loss, run(made, seen).loss)
    made.transformer.query_position_embeddings.weight.data.fill_(0.3)
    torch.testing.assert_close(run(made, (seen[0], *seen[:0:-1])).loss, run(made, seen).loss, atol=1e-4, rtol=1e-4)


def test_shuffle_deals_the_same_queries_and_masks_drop_whole_patches() -> None:
    added = torch.full((2, PATCHES, 16), 100.0)
    generator = torch.Generator().manual_seed(0)
    made = method(mask=0.0).train()
    embeddings = made.transformer.query_position_embeddings.weight
    with torch.no_grad():
        dealt = made._queries(added, generator) - 100
    assert torch.equal(dealt[0], dealt[1]) and not torch.allclose(dealt[0], embeddings, atol=1e-2)
    order = (dealt[0][:, None] - embeddings).abs().sum(-1).argmin(1)
    assert sorted(order.tolist()) == list(range(QUERIES))
    with torch.no_grad():
        fixed = method(mask=0.5, shuffle=False).train()._queries(added, generator) - embeddings
        at_test = method(mask=0.5).eval()._queries(added, generator)
    assert torch.equal(at_test, (embeddings + 100).expand(2, -1, -1))
    rows = (fixed / 100).round()
    assert torch.equal(rows[..., 0], rows[..., -1]) and set(rows.flatten().tolist()) == {0.0, 1.0}


def test_frozen_backbone_stays_and_the_target_is_never_pulled() -> None:
    made = method().train()
    before = {key: value.clone() for key, value in made.backbone.state_dict().items()}
    run(made, views()).loss.backward()
    assert made.trains == ("transformer",)
    assert all(parameter.grad is None for parameter in made.backbone.parameters())
    after = made.backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

    free = method(freeze_backbone=False, mask=1.0).eval()
    free.align[-1].weight.data.zero_()  # nothing is left of the reconstruction but what it is compared with
    seen = views()
    patches = [view.with_image(view.image.requires_grad_()) for view in seen[1:]]
    free.train()
    run(free, (seen[0], *patches)).loss.backward()
    assert free.trains == ("backbone", "transformer") and free.backbone.conv1.weight.grad.any()
    assert not any(patch.image.grad is not None and patch.image.grad.any() for patch in patches)


def test_images_come_in_the_sizes_of_the_range() -> None:
    config = UPDETRConfig()
    made = method()
    made.config = config
    image = View(torch.zeros(1, 3, 480, 480), torch.eye(2, 3)[None])
    sizes = {made._resized(image, torch.Generator().manual_seed(seed)).size[0] for seed in range(100)}
    assert sizes == set(range(320, 481, 16))


def test_wrong_trunks_are_named() -> None:
    with pytest.raises(UserError, match=r"trunk\.neck: fpn; up-detr .*trunk\.neck=transformer"):
        UPDETRConfig().build(Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)))
    with pytest.raises(UserError, match=r"method\.patches: 7; expected 1 to 6"):
        method().config.__class__(patches=7).build(method_trunk())


def method_trunk() -> Trunk:
    return Trunk(TrunkConfig("resnet18", neck="transformer", transformer=TransformerConfig(16, 2, 1, 1, 24, 0.0, 6)))
