"""The augmentation against PIL and torchvision with the same parameters, and its distributions."""

import colorsys
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as TF

from bench.random import Draws
from methods.common import augment as module
from methods.common.augment import (
    Parameters,
    apply,
    augment,
    blur_matrix,
    colour_jitter,
    crop_boxes,
    gaussian_blur,
    grayscale,
    interpolation,
    jitter_factors,
    resized_crop,
    rotate_hue,
    sample,
    solarize_bright,
)

RECIPE = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.2),
    "jitter_probability": 0.8,
    "gray": 0.2,
    "blur": 0.1,
    "solarize": 0.1,
}


class Stream:
    """Numbers (V, B, n) from a generator: all that ``augment`` asks of its draws."""

    def __init__(self, views, batch, seed=0):
        self.shape, self.generator = (views, batch), torch.Generator().manual_seed(seed)

    def uniform(self, n):
        return torch.rand(*self.shape, n, generator=self.generator)


def pictures(count, size=32, channels=3, seed=0):
    """Smooth colourful pictures with edges and some noise, whole grey levels: (count, C, size, size) in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    stripes = (torch.rand(count, channels, size, 1, generator=g) > 0.9) * 0.3
    x = smooth + stripes + 0.03 * torch.randn(count, channels, size, size, generator=g)
    return (x.clamp(0, 1) * 255).round() / 255


def to_pil(x):
    return TF.to_pil_image((x * 255).round().to(torch.uint8))


def levels(x, picture):
    """Absolute difference in grey levels of x (C, H, W) from a PIL picture, which is rounded to whole levels."""
    return (x * 255 - TF.pil_to_tensor(picture)).abs()


def pil_jitter(picture, factors, order):
    stages = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for kind in order.tolist():
        picture = stages[kind](picture, float(factors[kind]))
    return picture


def pil_view(x, p, n, size):
    """View n of the parameters p, flattened, by PIL's own stages."""
    picture = TF.resized_crop(to_pil(x), *p.boxes[n].tolist(), [size, size])
    picture = ImageOps.mirror(picture) if p.flip[n] else picture
    picture = pil_jitter(picture, p.factors[n], p.order[n])
    picture = TF.to_grayscale(picture, 3) if p.gray[n] else picture
    picture = picture.filter(ImageFilter.GaussianBlur(float(p.sigma[n]))) if p.sigma[n] > 0 else picture
    return ImageOps.solarize(picture) if p.solarize[n] else picture


def boxes_of(count, height=32, width=32, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=0):
    u = torch.rand(count, 40, generator=torch.Generator().manual_seed(seed))
    return crop_boxes(u, height, width, scale, ratio)


# ---------------------------------------------------------------- against PIL, stage by stage


@pytest.mark.parametrize("size", [8, 24, 32, 48])
def test_crop_and_resize_is_pils_to_rounding(size):
    """Also where the crop is larger than the output, which PIL filters against aliasing."""
    images, boxes = pictures(60), boxes_of(60)
    out = resized_crop(images, boxes, size)
    different = [
        levels(o, TF.resized_crop(to_pil(x), *b.tolist(), [size, size]))
        for o, x, b in zip(out, images, boxes, strict=True)
    ]
    assert torch.stack(different).max() < 1.01
    assert torch.stack(different).mean() < 0.5


def test_crop_of_a_picture_that_is_not_square():
    images = pictures(20)[:, :, :20]
    boxes = boxes_of(20, 20, 32)
    out = resized_crop(images, boxes, 16)
    different = [
        levels(o, TF.resized_crop(to_pil(x), *b.tolist(), [16, 16])) for o, x, b in zip(out, images, boxes, strict=True)
    ]
    assert torch.stack(different).max() < 1.01


def jitter_parameters(count, seed=0):
    u = torch.rand(count, 8, generator=torch.Generator().manual_seed(seed))
    return jitter_factors(u[:, :4], (0.4, 0.4, 0.4, 0.2)), u[:, 4:].argsort(dim=1)


def test_colour_jitter_is_pils_but_for_its_rounding():
    images = pictures(96)
    factors, order = jitter_parameters(96)
    steps = (factors[:, 3] * 255).round()  # PIL turns the hue by whole 256ths, of which torchvision asks for 255 h
    ours, theirs = factors.clone(), factors.clone()
    ours[:, 3], theirs[:, 3] = steps / 256, (steps + 0.5 * steps.sign()) / 255
    out = colour_jitter(images, ours, order)
    different = [levels(o, pil_jitter(to_pil(x), f, k)) for o, x, f, k in zip(out, images, theirs, order, strict=True)]
    assert torch.stack(different).mean() < 1.5


@pytest.mark.parametrize("kind", range(4), ids=["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("strength", [-1, -0.5, 0.5, 1])
def test_each_jitter_is_torchvisions(kind, strength):
    """Against the float version of torchvision, which rounds nothing."""
    images = pictures(8)
    value = 0.2 * strength if kind == 3 else 1 + 0.4 * strength
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    factors[:, kind] = value
    stage = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[kind]
    out = colour_jitter(images, factors, torch.arange(4).expand(8, 4))
    torch.testing.assert_close(out, stage(images, value), rtol=0, atol=2e-4)  # torchvision's luma is .2989, .587, .114


def test_gray_is_pils():
    images = pictures(20)
    gray = torch.arange(20) % 2 == 0
    out = grayscale(images, gray)
    assert (
        torch.stack(
            [levels(o, TF.to_grayscale(to_pil(x), 3)) for o, x in zip(out[gray], images[gray], strict=True)]
        ).max()
        < 1.01
    )
    torch.testing.assert_close(out[~gray], images[~gray], rtol=0, atol=1e-7)


def test_blur_is_gaussian_and_near_pils_boxes():
    images = pictures(60)
    sigma = torch.linspace(0.1, 2.0, 60)
    out = gaussian_blur(images.clone(), sigma)
    pil = [to_pil(x).filter(ImageFilter.GaussianBlur(float(s))) for x, s in zip(images, sigma, strict=True)]
    assert torch.stack([levels(o, p) for o, p in zip(out, pil, strict=True)]).mean() < 1.5
    tv = torch.stack(
        [
            TF.gaussian_blur(torch.nn.functional.pad(x, [6] * 4, "replicate"), 13, float(s))
            for x, s in zip(images, sigma, strict=True)
        ]
    )
    torch.testing.assert_close(out, tv[..., 6:-6, 6:-6], rtol=0, atol=1e-5)


def test_solarize_is_pils():
    images = pictures(20)
    chosen = torch.arange(20) % 2 == 0
    out = solarize_bright(images.clone(), chosen)
    for o, x, c in zip(out, images, chosen, strict=True):
        assert levels(o, ImageOps.solarize(to_pil(x)) if c else to_pil(x)).max() < 1e-3


def test_all_stages_together_are_pils_but_for_rounding():
    images = pictures(32)
    parameters = sample(Stream(8, 32), (32, 32), **RECIPE)
    out = apply(images, parameters, 32).flatten(0, 1)
    flat = Parameters(*(p.flatten(0, 1) for p in parameters))
    different = [levels(out[n], pil_view(images[n % 32], flat, n, 32)) for n in range(len(out))]
    # a pixel that rounds across the threshold of solarize may change by up to 255 levels: rare, so the mean holds
    assert torch.stack(different).mean() < 1.5
    assert torch.equal(out.view(8, 32, 3, 32, 32), augment(images, Stream(8, 32), views=8, size=32, **RECIPE))


# ---------------------------------------------------------------- crop boxes


def slow_box(u, height, width, scale, ratio):
    """RandomResizedCrop.get_params of torchvision 0.29 as it reads, with its numbers taken from u: (10, 4)."""
    for area, shape, top, left in u.double().tolist():
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return [(height - h) // 2, (width - w) // 2, h, w]


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
ranges = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple)


@given(shape=shapes, scale=ranges, ratio=ratios, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_boxes_equal_the_slow_loop_and_lie_inside(shape, scale, ratio, seed):
    u = torch.rand(8, 40, generator=torch.Generator().manual_seed(seed))
    boxes = crop_boxes(u, *shape, scale, ratio)
    assert boxes.dtype == torch.int64
    top, left, h, w = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 0).all()  # 0 in the fallback of a picture that is thinner than a pixel of the ratio
    assert (top + h <= shape[0]).all()
    assert (left + w <= shape[1]).all()
    assert boxes.tolist() == [slow_box(row.view(10, 4), *shape, scale, ratio) for row in u]


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    picture = torch.empty(3, 32, 32)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    ours = boxes_of(3000)
    for a, b in zip(ours.unbind(1), theirs.unbind(1), strict=True):
        table = torch.stack([torch.bincount(x, minlength=33).view(-1, 3).sum(1) for x in (a, b)])
        table = table[:, table.sum(0) > 10]
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2:].prod(1).numpy(), theirs[:, 2:].prod(1).numpy()).pvalue > 1e-3


def test_area_is_uniform_and_ratio_log_uniform_where_every_try_fits():
    boxes = boxes_of(4000, 1000, 1000, scale=(0.1, 0.5)).double()
    area, ratio = boxes[:, 2:].prod(1) / 1e6, boxes[:, 3] / boxes[:, 2]
    assert stats.kstest(area.numpy(), "uniform", args=(0.1, 0.4)).pvalue > 1e-3
    low, high = math.log(3 / 4), math.log(4 / 3)
    assert stats.kstest(ratio.log().numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3


def test_patches_are_a_quarter_of_the_picture():
    boxes = boxes_of(500, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert (boxes[:, 2:] == 16).all()
    assert set(boxes[:, 0].tolist()) == set(range(17))


def test_fallback_is_the_central_crop():
    assert boxes_of(1, 10, 100, scale=(1.0, 1.0)).tolist() == [[0, 43, 10, 13]]
    assert boxes_of(1, 100, 10, scale=(1.0, 1.0)).tolist() == [[43, 0, 13, 10]]
    assert boxes_of(1, 10, 11, scale=(1.0, 1.0), ratio=(0.9, 1.2)).tolist()[0][2:] in ([10, 11], [11, 10])


# ---------------------------------------------------------------- crops


def test_the_whole_box_changes_nothing_and_flip_mirrors():
    images = pictures(4)
    whole = torch.tensor([[0, 0, 32, 32]]).expand(4, 4)
    flip = torch.tensor([True, False, True, False])
    out = resized_crop(images, whole, 32, flip)
    expected = torch.where(flip[:, None, None, None], images.flip(3), images)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_crops_of_imagenets_size_are_antialiased_as_pils():
    """256 pixels to 224: large boxes are made smaller, small ones larger; to 1 level (0.5 of PIL's rounding, twice)."""
    images = torch.rand(6, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([boxes_of(5, 256, 256), torch.tensor([[0, 0, 256, 256]])])
    out = resized_crop(images, boxes, 224)
    for picture, image, (top, left, h, w) in zip(out, images, boxes.tolist(), strict=True):
        wanted = to_pil(image).crop((left, top, left + w, top + h)).resize((224, 224), Image.Resampling.BILINEAR)
        assert levels(picture, wanted).max() < 1.51
    smooth = torch.nn.functional.interpolate(images[5:], 224, mode="bilinear", antialias=False)[0]
    assert (smooth - out[5]).abs().max() > 0.05  # not what a grid of samples would give


def test_rows_of_the_interpolation_are_averages_inside_the_box():
    boxes = boxes_of(50)
    for out in (8, 32, 40):
        matrix = interpolation(boxes[:, 0], boxes[:, 2], 32, out)
        assert matrix.shape == (50, out, 32)
        assert matrix.min() >= 0
        torch.testing.assert_close(matrix.sum(2), torch.ones(50, out), rtol=0, atol=1e-6)
        pixels = torch.arange(32)
        outside = (pixels < boxes[:, :1]) | (pixels >= boxes[:, :1] + boxes[:, 2:3])
        assert (matrix.amax(1)[outside] == 0).all()


def test_views_are_view_major():
    images, boxes = pictures(3), boxes_of(6)
    both = resized_crop(images, boxes, 32)
    one_by_one = torch.cat([resized_crop(images[n % 3 : n % 3 + 1], boxes[n : n + 1], 32) for n in range(6)])
    torch.testing.assert_close(both, one_by_one, rtol=0, atol=1e-6)


def test_crops_are_differentiable_and_exact_inside_autocast():
    images, boxes = pictures(3).requires_grad_(), boxes_of(6)
    out = resized_crop(images, boxes, 32)
    out.sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.sum().item() == pytest.approx(6 * 3 * 32 * 32, rel=1e-4)  # every output pixel is an average
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_crop(images, boxes, 32), out)


# ---------------------------------------------------------------- colours


def test_hue_is_the_closed_form_with_a_remainder():
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0] = 0.5  # gray
    x[1, :, 0] = torch.eye(3)[:, [0, 1, 2, 0]]  # pure colours
    turns = torch.linspace(-0.5, 0.5, 50)
    v, low = x.amax(1), x.amin(1)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    hue = torch.tensor([colorsys.rgb_to_hsv(*rgb)[0] for rgb in pixels]).view(50, 4, 4)
    expected = []
    for n in (5, 3, 1):
        k = (n + 6 * (hue + turns[:, None, None])) % 6
        expected.append(v - (v - low) * torch.minimum(k, 4 - k).clamp(0, 1))
    torch.testing.assert_close(rotate_hue(x, turns), torch.stack(expected, 1), rtol=0, atol=1e-5)


def test_order_of_jitter_matters():
    images = pictures(1).expand(24, -1, -1, -1)
    order = torch.tensor(list(itertools.permutations(range(4))))
    factors = torch.tensor([1.4, 0.6, 1.4, 0.2]).expand(24, 4)
    out = colour_jitter(images, factors, order)
    assert len({tuple((picture * 1e4).round().flatten().tolist()) for picture in out}) > 12


def test_neutral_factors_change_nothing():
    images = pictures(5)
    _, order = jitter_parameters(5)
    out = colour_jitter(images, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(5, 4), order)
    torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


def test_blur_keeps_constants_and_leaves_sigma_0_alone():
    flat = torch.full((2, 3, 16, 16), 0.3)
    torch.testing.assert_close(gaussian_blur(flat.clone(), torch.tensor([0.5, 2.0])), flat)
    torch.testing.assert_close(blur_matrix(torch.zeros(1), 8)[0], torch.eye(8))
    images = pictures(2)
    assert torch.equal(gaussian_blur(images.clone(), torch.zeros(2)), images)


def test_work_on_all_rows_equals_work_on_the_chosen_rows(monkeypatch):
    """On a GPU the stages run over all rows, with parameters that change nothing for the rows not chosen."""
    images = pictures(8)
    few = augment(images, Stream(4, 8), views=4, size=32, **RECIPE)
    monkeypatch.setattr(module, "worth_it", lambda chosen: slice(None))
    torch.testing.assert_close(augment(images, Stream(4, 8), views=4, size=32, **RECIPE), few, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the whole


def test_rates_and_ranges_are_as_asked_for():
    p = sample(Stream(10, 2000), (32, 32), **RECIPE)
    count = 20000
    jittered = (p.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(-1)
    for happened, probability in (
        (p.flip, 0.5),
        (jittered, 0.8),
        (p.gray, 0.2),
        (p.sigma > 0, 0.1),
        (p.solarize, 0.1),
    ):
        assert stats.binomtest(int(happened.sum()), count, probability).pvalue > 1e-3
    for kind, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.2, 0.2)]):
        factor = p.factors[..., kind][jittered].numpy()
        assert stats.kstest(factor, "uniform", args=(low, high - low)).pvalue > 1e-3
    assert stats.kstest(p.sigma[p.sigma > 0].numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3


def test_all_24_orders_of_jitter_are_equally_likely():
    order = sample(Stream(10, 2400), (32, 32), **RECIPE).order.flatten(0, 1)
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_stages_that_are_off_are_not_drawn():
    off = {"flip": 0.0, "jitter_probability": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0}
    p = sample(Stream(2, 3), (32, 32), **{**RECIPE, **off})
    assert p == Parameters(p.boxes)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_range_and_same_draws_same_bytes(channels):
    images = pictures(5, channels=channels)
    out = augment(images, Stream(4, 5), views=4, size=24, **RECIPE)
    assert out.shape == (4, 5, channels, 24, 24)
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1 + 1e-6
    assert torch.equal(out, augment(images, Stream(4, 5), views=4, size=24, **RECIPE))
    assert not torch.equal(out, augment(images, Stream(4, 5, seed=1), views=4, size=24, **RECIPE))


def test_one_channel_has_no_colour_to_change():
    images = pictures(6, channels=1)
    factors, order = jitter_parameters(6)
    colourless = factors * torch.tensor([1.0, 1.0, 0.0, 0.0]) + torch.tensor([0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(colour_jitter(images, factors, order), colour_jitter(images, colourless, order))
    torch.testing.assert_close(grayscale(images, torch.ones(6, dtype=torch.bool)), images)


def test_bytes_are_accepted():
    images = pictures(5)
    out = augment(images, Stream(4, 5), views=4, size=32, **RECIPE)
    as_bytes = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(augment(as_bytes, Stream(4, 5), views=4, size=32, **RECIPE), out, rtol=0, atol=1e-5)


def test_pieces_change_nothing_and_images_stay(monkeypatch):
    images = pictures(9)
    before = images.clone()
    whole = augment(images, Stream(3, 9), views=3, size=32, **RECIPE)
    monkeypatch.setattr(module, "PIECE", 6)
    torch.testing.assert_close(augment(images, Stream(3, 9), views=3, size=32, **RECIPE), whole, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


def test_views_of_one_image_differ():
    out = augment(pictures(1).expand(6, -1, -1, -1), Stream(4, 6), views=4, size=32, **RECIPE).flatten(0, 1).flatten(1)
    distance = torch.cdist(out, out) + torch.eye(24) * 1e3
    assert distance.min() > 0.1


def test_draws_for_another_number_of_views_are_refused():
    with pytest.raises(ValueError, match="expected draws for"):
        augment(pictures(2), Stream(3, 2), views=4, size=32, **RECIPE)


def test_draws_of_the_harness_fit():
    ids = torch.tensor([5, 2, 9])
    images = pictures(3)
    out = augment(images, Draws(0, 1, ids, 4), views=4, size=32, **RECIPE)
    turned = augment(images.flip(0), Draws(0, 1, ids.flip(0), 4), views=4, size=32, **RECIPE)
    torch.testing.assert_close(turned.flip(1), out, rtol=0, atol=1e-6)
