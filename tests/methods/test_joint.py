from dataclasses import replace

import pytest
import torch
from small_methods import TRUNK, built
from torch import Tensor, nn

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.geometry.affine import crop_and_resize
from boxless.geometry.view import View
from boxless.losses import local_contrastive_loss
from boxless.methods.byol import BYOL, BYOLConfig
from boxless.methods.joint import Joint, JointConfig
from boxless.methods.lc import LocalConfig, places
from boxless.methods.method import MethodOutput
from boxless.methods.soco import SoCo, SoCoConfig

CONFIG = JointConfig(
    size=64, hidden=16, output=8, local=LocalConfig(hidden=16, output=8), boxes=3, jitter_probability=0.0
)
WEIGHTS = ("global_weight", "pixel_weight", "object_weight")
BOXES = torch.tensor([[[10.0, 10, 60, 50], [20, 30, 90, 90]], [[30.0, 20, 70, 60], [0, 0, 5, 5]]])  # last: outside V2


def joint(config: JointConfig = CONFIG) -> Joint:
    return built(config, spread=0.2)


def views() -> tuple[View, ...]:
    """The whole of two 100 x 100 px sources, and mirrored crops."""
    generator = torch.Generator().manual_seed(1)
    pair = []
    for window in ([0.0, 0, 100, 100], [10.0, 20, 100, 95]):
        image = torch.randn(2, 3, 64, 64, generator=generator)
        pair.append(View(image, crop_and_resize(torch.tensor([window, window]), 64, 64)))
    return pair[0], pair[1].mirrored(torch.tensor([True, False]))


def run(method: Joint, boxes: Tensor = BOXES) -> MethodOutput:
    return method(views(), boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), torch.Generator().manual_seed(3))


def same_weights(method: nn.Module, other: nn.Module, names: dict[str, str]) -> None:
    """Copy into `other` what `method` has under other names."""
    state = method.state_dict()
    renamed = {}
    for theirs, ours in names.items():
        renamed |= {theirs + key[len(ours) :]: value for key, value in state.items() if key.startswith(ours)}
    other.load_state_dict(renamed)


def test_terms_are_those_of_their_papers_methods() -> None:
    method, (whole, crop) = joint().eval(), views()
    terms = run(method).terms

    byol = BYOL(Trunk(TRUNK), BYOLConfig(hidden=16, output=8)).eval()
    heads = {f"{side}projector.": f"images.{side}projector." for side in ("", "target_")}
    same_weights(
        method,
        byol,
        {"encoder.": "body.", "target_encoder.": "target_body.", "predictor.": "images.predictor.", **heads},
    )
    nowhere = torch.zeros(2, 0, 4)
    expected = byol((whole, crop), nowhere, nowhere[..., 0] > 0, torch.Generator()).loss
    torch.testing.assert_close(terms["global"], expected.detach())

    soco = SoCo(Trunk(TRUNK), SoCoConfig(hidden=16, output=8, boxes=3, jitter_probability=0.0)).eval()
    soco.directions = [(0, 1), (1, 0)]  # without V3
    names = {"predictor.": "boxes.predictor."}
    for side in ("", "target_"):
        names |= {f"{side}projector.": f"boxes.{side}projector.", f"{side}trunk.backbone.body.": f"{side}body."}
        names |= {f"{side}trunk.backbone.fpn.": f"{side}fpn."}
        names |= {f"{side}trunk.box_head.": f"boxes.{side}represent.box_head."}
    same_weights(method, soco, names)
    valid = torch.ones(2, 2, dtype=torch.bool)
    expected = soco((whole, crop), BOXES, valid, torch.Generator().manual_seed(3)).loss
    torch.testing.assert_close(terms["object"], expected.detach())

    with torch.no_grad():
        expected = torch.zeros(())
        for a, b in ((whole, crop), (crop, whole)):
            target = method.cells.target_projector(method.target_body(a.image)["3"])
            online = method.cells.projector(method.body(b.image)["3"])
            expected += local_contrastive_loss(target, online, places(a, b, 2, 2), 0.2)
    torch.testing.assert_close(terms["pixel"], expected)


def test_loss_is_the_weighted_sum() -> None:
    output = run(joint(replace(CONFIG, global_weight=0.5, pixel_weight=2.0, object_weight=3.0)).eval())
    terms = output.terms
    total = 0.5 * terms["global"] + 2.0 * terms["pixel"] + 3.0 * terms["object"]
    torch.testing.assert_close(output.loss.detach(), total)


@pytest.mark.parametrize("left", WEIGHTS)
def test_a_weight_of_zero_leaves_the_term_and_its_modules_out(left: str) -> None:
    full, less = joint().eval(), joint(replace(CONFIG, **{left: 0.0})).eval()
    name = left.removesuffix("_weight")
    less.load_state_dict({key: full.state_dict()[key] for key in less.state_dict()})
    terms, output = run(full).terms, run(less)
    assert set(output.terms) == set(terms) - {name}
    for key, value in output.terms.items():
        torch.testing.assert_close(value, terms[key])
    gone = {key.split(".")[0] for key in full.state_dict().keys() - less.state_dict().keys()}
    assert gone == {"global": {"images"}, "pixel": {"cells"}, "object": {"boxes", "fpn", "target_fpn"}}[name]
    output.loss.backward()
    missing = [key for key, p in less.named_parameters() if p.requires_grad and p.grad is None]
    assert all("fpn." in key for key in missing)  # of levels that have no boxes
    config = replace(CONFIG, **{left: 0.0})
    assert config.needs_boxes == (name != "object") == ("RoI head" in less.trains)


def test_each_view_passes_the_body_and_the_pyramid_once() -> None:
    method, passes = joint(), []
    for name in ("body", "target_body", "fpn", "target_fpn"):
        method.get_submodule(name).register_forward_hook(lambda *_, name=name: passes.append(name))
    run(method)
    assert len(passes) == 8 and {passes.count(name) for name in passes} == {2}


def test_a_batch_without_boxes_still_learns_the_rest() -> None:
    method = joint()
    output = run(method, torch.zeros(2, 1, 4))
    output.loss.backward()
    assert output.terms["object"] == 0 and set(output.terms) == {"global", "pixel", "object"}
    trained = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    assert trained["body.conv1.weight"].any() and not trained["fpn.inner_blocks.0.0.weight"].any()


@pytest.mark.parametrize("weights", [{}, {"object_weight": 0.0}, {"object_weight": 0.0, "global_weight": 0.0}])
def test_pixel_term_on_the_pyramid_trains_it(weights: dict[str, float]) -> None:
    config = replace(CONFIG, pixel_map="P3", local=replace(CONFIG.local, predictor=True), **weights)
    method, (whole, crop) = joint(config).eval(), views()
    output = run(method)
    with torch.no_grad():
        expected = torch.zeros(())
        for a, b in ((whole, crop), (crop, whole)):
            target = method.cells.target_projector(method.target_fpn(method.target_body(a.image))["1"])
            online = method.cells.predictor(method.cells.projector(method.fpn(method.body(b.image))["1"]))
            expected += local_contrastive_loss(target, online, places(a, b, 8, 8), 0.2)
    torch.testing.assert_close(output.terms["pixel"], expected)
    output.loss.backward()
    assert method.fpn.inner_blocks[1][0].weight.grad.any() and method.fpn.inner_blocks[3][0].weight.grad.any()
    assert method.trains == ("backbone", "FPN", "RoI head")[: 2 if weights else 3]
    before = method.target_fpn.inner_blocks[3][0].weight.clone()
    method.after_step(0, 100)
    assert not torch.equal(before, method.target_fpn.inner_blocks[3][0].weight)
    assert output.online is not None and output.target is not None


def test_impossible_weights_and_trunks_are_refused() -> None:
    with pytest.raises(UserError, match="weight above 0"):
        joint(replace(CONFIG, **dict.fromkeys(WEIGHTS, 0.0)))
    for config in (CONFIG, replace(CONFIG, object_weight=0.0, pixel_map="P2")):
        with pytest.raises(UserError, match="object_weight=0"):
            config.build(Trunk(TrunkConfig("resnet18", neck="c4")))
