import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from boxless.data.transforms.color import CHANGES, Photometric, _draw, augment, one_by_one
from boxless.data.transforms.color_gpu import _gray, _jitter, blur, together
from boxless.geometry.affine import identity
from boxless.geometry.view import View

NOTHING = Photometric(flip=0.0, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)


def pixels(count: int = 4, size: int = 24, seed: int = 0) -> Tensor:
    """Random uint8 images, among them black, white and grey pixels, which have no hue."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    image[:, :, 0] = torch.tensor([0, 255, 128]).repeat(size)[:size].to(torch.uint8)
    return image


def augmented(image: Tensor, seed: int = 0, **settings: object) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    changed = Photometric(**{**vars(NOTHING), **settings})  # type: ignore[arg-type]
    return augment(View(image, identity(len(image))), changed, generator).image


def alone(name: str, image: Tensor, amounts: list[float]) -> Tensor:
    """A change of images (B, 3, H, W) as a processor makes it."""
    pixels = [one.permute(1, 2, 0).contiguous().numpy().copy() for one in image]
    changed = [CHANGES[name](one, amount) for one, amount in zip(pixels, amounts, strict=True)]
    return torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in changed])


@pytest.mark.parametrize(
    ("name", "factors", "expected"),
    [
        ("brightness", [0.6, 1.0, 1.4, 0.0], reference.adjust_brightness),
        ("contrast", [0.6, 1.0, 1.4, 0.0], reference.adjust_contrast),
        ("saturation", [0.8, 1.0, 1.2, 0.0], reference.adjust_saturation),
        ("hue", [-0.1, 0.0, 0.1, 0.25], reference.adjust_hue),
        ("hue", [-0.5, 0.5, 0.4999, -0.25], reference.adjust_hue),
    ],
)
def test_colour_operations_are_torchvisions(name: str, factors: list[float], expected: object) -> None:
    image = pixels() / 255
    ours = _jitter(image.clone(), name=name, factor=torch.tensor(factors))
    theirs = torch.stack([expected(one, factor) for one, factor in zip(image, factors, strict=True)])  # type: ignore
    # torchvision rounds the weight of red to 0.2989, so that its grey of white is 0.9999.
    torch.testing.assert_close(ours, theirs, atol=2e-5 if name in ("brightness", "hue") else 2e-4, rtol=0)
    assert ours.min() >= 0 and ours.max() <= 1
    torch.testing.assert_close(alone(name, image, factors), ours, atol=3e-6, rtol=0)


def test_grey_blur_and_solarize_are_torchvisions() -> None:
    image = pixels(size=40)
    scaled = image / 255
    torch.testing.assert_close(_gray(scaled), reference.rgb_to_grayscale(scaled), atol=1e-3, rtol=0)  # 0.2989
    torch.testing.assert_close(alone("gray", scaled, [1.0] * 4)[:, :1], _gray(scaled), atol=1e-6, rtol=0)
    sigmas = [0.1, 0.7, 1.3, 2.0]
    theirs = [reference.gaussian_blur(one, [17, 17], [s, s]) for one, s in zip(scaled, sigmas, strict=True)]
    torch.testing.assert_close(alone("blur", scaled, sigmas), torch.stack(theirs), atol=3e-5, rtol=0)
    torch.testing.assert_close(blur(scaled, torch.tensor(sigmas)), torch.stack(theirs), atol=1e-5, rtol=0)
    solarized = augmented(image, solarize=1.0) * 255  # a value of 128 may round to either side of the threshold
    torch.testing.assert_close(solarized, reference.solarize(image, 128).float(), atol=1.01, rtol=0)


def test_no_chance_changes_nothing() -> None:
    image = pixels()
    torch.testing.assert_close(augmented(image), image / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"flip": 1.0}, {"gray": 1.0}, {"blur": 1.0, "blur_sigma": (0.5, 2.0)}, {"solarize": 1.0}, {"jitter": 1.0}],
)
def test_certain_chance_changes_every_sample(settings: dict[str, object]) -> None:
    image = pixels(count=64, size=12)
    changed = augmented(image, **settings)
    assert ((changed - image / 255).abs().amax((1, 2, 3)) > 1e-3).all()
    if "gray" in settings:
        assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    if "flip" in settings:
        torch.testing.assert_close(changed, image.flip(-1) / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"flip": 0.3}, {"gray": 0.3}, {"blur": 0.3, "blur_sigma": (0.5, 2.0)}, {"solarize": 0.3}, {"jitter": 0.3}],
)
def test_chance_is_drawn_for_each_sample(settings: dict[str, object]) -> None:
    image = pixels(count=1, size=12).expand(2000, -1, -1, -1)
    share = ((augmented(image, **settings) - image / 255).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert 0.25 < share < 0.35  # five standard deviations


def test_strength_is_drawn_for_each_sample_evenly() -> None:
    image = torch.full((2000, 3, 2, 2), 100, dtype=torch.uint8)
    factor = augmented(image, jitter=1.0, contrast=0.0, saturation=0.0, hue=0.0)[:, 0, 0, 0] * 255 / 100
    assert factor.min() >= 0.6 and factor.max() <= 1.4
    assert torch.histc(factor, 4, 0.6, 1.4).min() > 400


def test_generator_decides_everything() -> None:
    image, settings = pixels(), vars(Photometric(blur=0.5, solarize=0.2))
    torch.manual_seed(1)
    first = augmented(image, 7, **settings)
    torch.manual_seed(2)
    assert torch.equal(augmented(image, 7, **settings), first)
    assert not torch.equal(augmented(image, 8, **settings), first)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image, settings = pixels(count=7), vars(Photometric(blur=0.5, solarize=0.2))
    alone = augmented(image, 7, **settings)
    for threads in (3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.testing.assert_close(augmented(image, 7, **settings), alone, atol=1e-5, rtol=0)


def test_devices_change_images_alike() -> None:
    image, settings = pixels(count=40), Photometric(blur=0.5, solarize=0.0)  # a value may round to 128 on either
    flipped, steps = _draw(40, settings, torch.Generator().manual_seed(5))
    batched = together(View(image, identity(40)).mirrored(flipped).image, steps)
    torch.testing.assert_close(one_by_one(image, flipped, steps), batched, atol=3e-5, rtol=0)


@pytest.mark.parametrize("after", [{"blur": 0.5}, {"solarize": 0.5}, {}])
def test_a_batch_that_is_grey_throughout_can_be_changed_further(after: dict[str, float]) -> None:
    flipped, steps = _draw(6, Photometric(**{**vars(NOTHING), "gray": 1.0, **after}), torch.Generator().manual_seed(0))
    image = pixels(6)
    grey = together(image, steps)
    torch.testing.assert_close(grey.clone(), one_by_one(image, flipped, steps), atol=3e-5, rtol=0)
    grey.sub_(0.5).div_(0.5)  # as training does


def test_flip_is_known_to_the_map() -> None:
    image = torch.zeros(50, 3, 4, 10, dtype=torch.uint8)
    image[..., 2:5] = 255
    view = augment(
        View(image, identity(50)), Photometric(**{**vars(NOTHING), "flip": 0.5}), torch.Generator().manual_seed(0)
    )
    boxes, _ = view.boxes(torch.tensor([[[2.0, 0, 5, 4]]]).expand(50, 1, 4))
    for box, one in zip(boxes[:, 0], view.image, strict=True):
        columns = one[0, 0].nonzero()[:, 0]
        assert box.tolist() == [columns.min(), 0, columns.max() + 1, 4]


def test_blur_keeps_constant_images_and_total_light_inside() -> None:
    flat = torch.full((2, 3, 20, 30), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([0.1, 2.0])), flat)
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    spread = blur(point, torch.tensor([2.0]))
    torch.testing.assert_close(spread.sum((2, 3)), torch.ones(1, 3))
    x = torch.arange(41) - 20.0
    assert (spread[0, 0].sum(0) * x**2).sum().sqrt().item() == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_tiny_views_survive(size: int) -> None:
    settings = vars(Photometric(flip=0.5, gray=0.5, blur=1.0, solarize=0.5))
    changed = augmented(pixels(size=8)[..., :size, :size], **settings)
    assert changed.shape[-2:] == (size, size) and changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 1 + 1e-6
