import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from boxless.data.transforms.color import Photometric, augment
from boxless.data.unlabelled import ViewDataset, collate, fill_resized
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.geometry.affine import crop_and_resize, identity
from boxless.geometry.view import View
from boxless.methods.method import MethodOutput
from boxless.methods.soco import SoCo, SoCoConfig, SoCoFamily, cut_out
from boxless.methods.soco_c4 import SoCoC4Config
from boxless.methods.soco_star import SoCoStarConfig

CONFIG = SoCoConfig(boxes=4, jitter_probability=0.0, hidden=16, output=8)
STAR = SoCoStarConfig(boxes=4, jitter_probability=0.0, hidden=16, output=8)
C4 = SoCoC4Config(boxes=4, jitter_probability=0.0, hidden=16, output=8)


def soco(config: SoCoFamily = CONFIG, per_box: bool = True) -> SoCo:
    """A small SoCo whose target differs from its online network; with `per_box`, no box's norms see another box."""
    torch.manual_seed(0)
    norm = "group" if per_box else "batch"
    method = config.build(Trunk(TrunkConfig("resnet18", norm, config.necks[0], fpn_channels=16, box_head_width=32)))  # type: ignore[arg-type]
    for head in (method.projector, method.predictor, method.target_projector):
        if per_box:
            head[1] = nn.Identity()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return method.train()


def three_views(windows: list[list[float]], size: int = 224, small: int = 112) -> tuple[View, ...]:
    """V1 of 300 x 200 px sources, a mirrored V2 of one window per source, V3 of the same windows, random pixels."""
    return some_views([[WHOLE] * len(windows), windows, windows], [size, size, small], (False, True, False))


def some_views(windows: list[list[list[float]]], sizes: list[int], mirrored: tuple[bool, ...]) -> tuple[View, ...]:
    """Views of random pixels that show windows of their sources, px, one list of windows for each view."""
    count, generator = len(windows[0]), torch.Generator().manual_seed(1)
    views = []
    for own, side, turned in zip(windows, sizes, mirrored, strict=True):
        image = torch.randn(count, 3, side, side, generator=generator)
        view = View(image, crop_and_resize(torch.tensor(own), side, side))
        views.append(view.mirrored(torch.full((count,), turned)))
    return tuple(views)


def run(method: SoCo, views: tuple[View, ...], boxes: Tensor, valid: Tensor) -> MethodOutput:
    return method(views, boxes, valid, torch.Generator().manual_seed(0))


WHOLE = [0.0, 0, 300, 200]
WINDOWS = [[0.0, 0, 300, 200], [50.0, 20, 250, 180], [150.0, 100, 300, 200]]
OTHERS = [[30.0, 0, 300, 160], [20.0, 10, 270, 200], [150.0, 100, 300, 200]]
FRAMES = {  # windows, size, whether mirrored, of each view
    "soco": [([WHOLE] * 3, 224, False), (WINDOWS, 224, True), (WINDOWS, 112, False)],
    "soco-star": [([WHOLE] * 3, 224, False), (WINDOWS, 224, True), (WINDOWS, 112, False), (OTHERS, 192, True)],
    "soco-c4": [([WHOLE] * 3, 224, False), (WINDOWS, 224, True)],
}
SOURCES = [
    [[10.0, 10, 60, 50], [20.0, 30, 290, 190], [100.0, 20, 220, 150]],  # all seen
    [[60.0, 30, 100, 60], [0.0, 0, 40, 200], [240.0, 100, 290, 190], [90.0, 40, 250, 160]],  # one outside of V2
    [[0.0, 0, 100, 90], [10.0, 10, 140, 90]],  # none seen in V2
]


def padded(sources: list[list[list[float]]], places: int = 5) -> tuple[Tensor, Tensor]:
    boxes, valid = torch.zeros(len(sources), places, 4), torch.zeros(len(sources), places, dtype=torch.bool)
    for i, own in enumerate(sources):
        boxes[i, : len(own)] = torch.tensor(own).view(-1, 4)
        valid[i, : len(own)] = True
    return boxes, valid


def box_in_view(box: list[float], window: list[float], side: int, mirrored: bool) -> list[float] | None:
    """Where a source box lies in a view of a window, by hand; None outside."""
    x1, y1, x2, y2 = window
    x = [min(max((value - x1) * side / (x2 - x1), 0.0), side) for value in box[::2]]
    y = [min(max((value - y1) * side / (y2 - y1), 0.0), side) for value in box[1::2]]
    if mirrored:
        x = [side - x[1], side - x[0]]
    return [x[0], y[0], x[1], y[1]] if x[0] < x[1] and y[0] < y[1] else None


LADDER = {  # table 4: selective search on C5, then FPN, head, scale-aware assignment and the third view
    "boxes": dataclasses.replace(CONFIG, align="body", third_view="none"),
    "fpn": dataclasses.replace(CONFIG, align="pyramid", pooling="coarsest_level", third_view="none"),
    "head": dataclasses.replace(CONFIG, pooling="coarsest_level", third_view="none"),
    "scale": dataclasses.replace(CONFIG, third_view="none"),
}


def vector(config: SoCoFamily, trunk: Trunk, heads: list[nn.Module], image: Tensor, box: list[float]) -> Tensor:
    """f_H(RoIAlign(f_I(V), b)) and the heads after it, of one box (paper, eqs. 1 to 4)."""
    side = image.shape[-1]
    w, h = (int(box[2]) - int(box[0]) + 1), (int(box[3]) - int(box[1]) + 1)
    root = math.sqrt(w * h)
    level = 2 if root <= 48 else 3 if root <= 96 else 4 if root <= 192 else 5
    if config.pooling == "coarsest_level":
        level = 5
    if trunk.config.neck == "c4":
        feature, bins = trunk.backbone.body(image[None])["0"], 14
    elif config.align == "body":
        feature, bins = trunk.backbone.body(image[None])["3"], 7
    else:
        feature, bins = trunk.pyramid(image[None])[str(level - 2)], 7
    place = torch.tensor([[0.0, *box]])
    pooled = roi_align(feature, place, bins, spatial_scale=feature.shape[-1] / side, aligned=True)
    described = trunk.box_head(pooled) if config.align == "head" else pooled.mean((2, 3))
    for head in heads:
        described = head(described)
    return described[0].double()


@torch.no_grad()
def slow_loss(method: SoCo, views: tuple[View, ...]) -> float:
    """Eqs. 5 and 6, box by box."""
    total = 0.0
    frames = FRAMES[method.config.name][: len(views)]
    for i, sources in enumerate(SOURCES):
        places = [[box_in_view(box, windows[i], side, turned) for windows, side, turned in frames] for box in sources]
        places = [place for place in places if None not in place]
        for place in places:
            online = [
                vector(method.config, method.trunk, [method.projector, method.predictor], v.image[i], at)
                for v, at in zip(views, place, strict=True)
            ]
            target = [
                vector(method.config, method.target_trunk, [method.target_projector], v.image[i], at)
                for v, at in zip(views, place, strict=True)
            ]
            for other in range(1, len(views)):
                for a, b in ((0, other), (other, 0)):
                    cosine = (online[a] @ target[b]) / (online[a].norm() * target[b].norm())
                    total += -2 * float(cosine) / len(places) / len(SOURCES)
    return total


@pytest.mark.parametrize("config", [CONFIG, STAR, C4, *LADDER.values()], ids=["soco", "soco-star", "soco-c4", *LADDER])
def test_loss_is_the_papers(config: SoCoFamily) -> None:
    method = soco(config)
    frames = FRAMES[config.name][: len(config.views())]
    views = some_views(*map(list, zip(*frames, strict=True)))  # type: ignore[arg-type]
    output = run(method, views, *padded(SOURCES))
    assert output.loss.item() == pytest.approx(slow_loss(method, views), abs=2e-5)
    assert output.loss.item() == pytest.approx(
        sum(v.item() for k, v in output.terms.items() if k != "boxes_per_image"), abs=1e-6
    )
    assert output.terms["boxes_per_image"].item() == pytest.approx((3 + 3 + 0) / 3)
    assert output.online.shape == output.target.shape == (6, 8)


def test_pooling_at_all_levels_is_the_same_but_for_norms() -> None:
    views, given = three_views(WINDOWS), padded(SOURCES)
    everywhere = dataclasses.replace(CONFIG, pooling="all_levels")
    for per_box in (True, False):
        own, other = (run(soco(config, per_box), views, *given).loss.item() for config in (CONFIG, everywhere))
        assert (own == pytest.approx(other, abs=1e-5)) == per_box


def test_only_what_describes_a_box_is_trained() -> None:
    for rung, parts in {"boxes": 1, "fpn": 2, "head": 3}.items():
        method = soco(LADDER[rung])
        trained = method.trains
        assert trained == ("backbone", "FPN", "RoI head")[:parts]
        run(method, three_views(WINDOWS)[:2], *padded(SOURCES)).loss.backward()
        for name, part in method.trunk.parts.items():
            assert {p.grad is not None for p in part.parameters()} <= {name in trained, False}, name
            assert any(p.grad is not None and p.grad.any() for p in part.parameters()) == (name in trained), name


def test_copies_fill_places_with_boxes_of_the_image_anew_in_each_view() -> None:
    method = soco(dataclasses.replace(CONFIG, empty_places="copies", boxes=6))
    present = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    ids, there = method._filled(present.repeat(50, 1), 3, torch.Generator().manual_seed(0))
    assert there.view(50, 4, 6).all((0, 2)).tolist() == [True, True, True, False]
    for own in (view.view(50, 4, 6) for view in ids):
        assert torch.equal(own[:, 0], torch.arange(6).expand(50, 6)) and (own[:, 1, :3] == torch.arange(3)).all()
        assert set(own[:, 1, 3:].unique().tolist()) == {0, 1, 2} and not own[:, 2].any()
    assert not torch.equal(ids[0], ids[1]) and not torch.equal(ids[1], ids[2])


def test_copies_of_one_box_weigh_nothing_and_of_several_unequally() -> None:
    views = three_views(WINDOWS)
    copying = soco(dataclasses.replace(CONFIG, empty_places="copies"))
    for sources, same in (([SOURCES[0][:1], SOURCES[1][3:], []], True), (SOURCES, False)):
        expected, given = run(soco(), views, *padded(sources)), run(copying, views, *padded(sources))
        assert (given.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)) == same
        assert given.terms["boxes_per_image"] == expected.terms["boxes_per_image"]


def test_a_square_of_a_box_is_cut_out() -> None:
    count = 40
    view = View(torch.ones(count, 3, 96, 128), identity(count))
    boxes = torch.tensor([[20.0, 20, 60, 60], [40.0, 30, 80, 70]]).expand(count, 2, 4)
    there = torch.tensor([True, False]).expand(count, 2)
    holes = cut_out(view, boxes, there, 0.5, torch.Generator().manual_seed(0)).image == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    sizes = holes[:, 0].sum((1, 2))
    assert 10 < (sizes > 0).sum() < 30
    for hole in holes[:, 0][sizes > 0]:
        y, x = hole.nonzero(as_tuple=True)
        height, width = y.max() - y.min() + 1, x.max() - x.min() + 1
        assert hole.sum() == height * width and abs(height - width) <= 1
        assert 0.1 * 1600 - 26 < height * width < 0.3 * 1600 + 46  # rounded to whole px on each side
        assert 19 < (y.float().mean() + 0.5) < 61 and 19 < (x.float().mean() + 0.5) < 61
    assert torch.equal(cut_out(view, boxes, there, 0.0, torch.Generator()).image, view.image)


@pytest.mark.parametrize("config", [CONFIG, C4], ids=lambda config: config.name)
def test_squares_are_cut_out_of_all_views_but_the_first(config: SoCoFamily) -> None:
    method = soco(dataclasses.replace(config, cut_out=1.0))
    seen: list[View] = []
    embed = SoCo._embed
    method._embed = lambda *given: seen.append(given[2]) or embed(method, *given)  # type: ignore
    views = three_views(WINDOWS[:1], 96, 48)[: len(FRAMES[config.name])]
    run(method, views, *padded(SOURCES[:1]))
    changed = [not torch.equal(view.image, given.image) for given, view in zip(views * 2, seen, strict=True)]
    assert changed == [False, *[True] * (len(views) - 1)] * 2


def test_a_trunk_with_the_wrong_neck_is_refused() -> None:
    for config, neck in ((CONFIG, "c4"), (C4, "fpn")):
        with pytest.raises(UserError, match=rf"^trunk\.neck: {neck}; method {config.name} needs"):
            config.build(Trunk(TrunkConfig("resnet18", neck=neck, fpn_channels=16, box_head_width=32)))  # type: ignore[arg-type]


def test_star_and_c4_have_no_options_of_other_views() -> None:
    names = {config: {field.name for field in dataclasses.fields(config)} for config in (SoCoStarConfig, SoCoC4Config)}
    assert "third_view" not in names[SoCoStarConfig]
    assert not names[SoCoC4Config] & {"small_size", "third_view", "pooling"} and SoCoC4Config().pooling == "own_level"


def test_padding_and_hidden_boxes_change_nothing() -> None:
    method, views = soco(per_box=False), three_views(WINDOWS)
    boxes, valid = padded(SOURCES)
    expected = run(method, views, boxes, valid).loss
    garbage = torch.rand(boxes.shape) * 200
    moved = torch.where(valid[..., None], boxes, torch.cat([garbage[..., :2], garbage[..., :2] + 50], -1))
    moved[2, 0] = torch.tensor([5.0, 5, 50, 50])  # another place that V2 does not show
    assert torch.equal(run(method, views, moved, valid).loss, expected)


def test_only_k_boxes_are_taken_and_the_generator_chooses() -> None:
    method, views = soco(dataclasses.replace(CONFIG, boxes=2)), three_views(WINDOWS[:1])
    boxes, valid = padded(SOURCES[:1])
    losses = {method(views, boxes, valid, torch.Generator().manual_seed(seed)).loss.item() for seed in range(6)}
    assert 1 < len(losses) <= 3  # 3 pairs of 3 boxes
    assert run(method, views, boxes, valid).terms["boxes_per_image"] == 2


@pytest.mark.parametrize("count", [0, 1])
def test_batch_with_too_few_boxes_for_batch_norms_teaches_nothing(count: int) -> None:
    method, views = soco(per_box=False), three_views(WINDOWS, 64, 32)
    boxes, valid = padded([SOURCES[0][:count], [], SOURCES[2]])
    output = run(method, views, boxes, valid)
    output.loss.backward()
    assert output.loss.item() == 0 and output.online is None
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert set(output.terms) == set(run(method, views, *padded(SOURCES)).terms)  # the logger averages by name


def test_jitter_moves_boxes_of_the_first_view_only() -> None:
    def rois(probability: float) -> list[Tensor]:
        method = soco(dataclasses.replace(CONFIG, jitter_probability=probability))
        seen: list[Tensor] = []
        embed = SoCo._embed
        method._embed = lambda *given: seen.append(given[3]) or embed(method, *given)  # type: ignore
        run(method, three_views(WINDOWS[:1], 96, 48), *padded(SOURCES[:1]))
        return seen

    plain, jittered = rois(0.0), rois(1.0)
    assert len(plain) == 6  # three views, online and target
    for view in (1, 2, 4, 5):
        assert torch.equal(plain[view], jittered[view])
    for view in (0, 3):
        assert (plain[view] != jittered[view]).any(-1)[0, :3].all()
    assert torch.equal(jittered[0], jittered[3])


@pytest.mark.parametrize("third", ["resize_of_second", "independent_crop"])
def test_boxes_cover_the_bright_pixels_of_every_view(third: str, tmp_path: Path) -> None:
    truth = np.array([[70, 40, 130, 110]], np.float32)
    image = np.full((150, 200, 3), 20, np.uint8)
    image[40:110, 70:130] = 250
    Image.fromarray(image).save(tmp_path / "image.png")

    class One:
        def __len__(self) -> int:
            return 1

        def path(self, row: int) -> str:
            return str(tmp_path / "image.png")

        def boxes(self, row: int) -> np.ndarray:
            return truth

        def size(self, row: int) -> tuple[int, int]:
            return 200, 150

    quiet = Photometric(jitter=0.0, gray=0.0, blur=0.0)
    config = SoCoConfig(size=96, small_size=48, third_view=third, first=quiet, second=quiet)  # type: ignore[arg-type]
    dataset = ViewDataset(One(), config.views(), One(), seed=0)
    batch = collate([dataset[epoch, 0] for epoch in range(12)], config.views())
    assert [view is None for view in batch.views] == [False, False, third == "resize_of_second"]
    generator = torch.Generator().manual_seed(0)
    views = [augment(view, quiet, generator) for view in fill_resized(batch, config.views())]
    for view, side in zip(views, (96, 96, 48), strict=True):
        boxes, share = view.boxes(batch.boxes)
        assert view.size == (side, side) and (share > 0).all()
        assert 0 < (view.from_source[:, 0, 0] < 0).sum() < 12
        for box, pixels in zip(boxes[:, 0], view.image, strict=True):
            y, x = (pixels[0] > 135 / 255).nonzero(as_tuple=True)
            seen = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
            torch.testing.assert_close(seen.float(), box, atol=1.5, rtol=0)
    sizes = [
        view.from_source[:, :, :2].abs().amax((1, 2)) * 96 / side
        for view, side in zip(views, (96, 96, 48), strict=True)
    ]
    assert torch.allclose(sizes[1], sizes[2]) == (third == "resize_of_second")
