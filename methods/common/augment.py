"""Random views of a batch of images, on the device, with an own draw for every view of every image.

First the parameters are drawn (``sample``), then they are applied (``apply``); ``augment`` does both. Images are floats
in [0, 1]. The order of the stages is that of the paper: crop, flip, colour jitter, gray, blur, solarize. Each stage is
what PIL and torchvision do, but for their rounding to 8 bits after every stage. N counts views of images, view-major:
row n shows image n mod B.
"""

import math
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

TRIES = 10  # of RandomResizedCrop, before it takes the central crop
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL converts to gray
SIGMA = (0.1, 2.0)  # standard deviation of the blur, in pixels
PIECE = 128  # crops per piece on a CPU: what fits its cache; 512 at a time cost a third of the rate

Pair = tuple[float, float]
Chance = float | tuple[float, ...]  # a probability, the same for all views or one for each


class Draws(Protocol):
    """Anything that gives (V, B, n) numbers in [0, 1), fresh ones at each call."""

    def uniform(self, n: int) -> Tensor: ...


class Parameters(NamedTuple):
    """What happens to each view of each image; None: the stage is off. All (V, B) or (V, B, ...)."""

    boxes: Tensor  # (V, B, 4) int64: top, left, height, width
    flip: Tensor | None = None  # bool
    factors: Tensor | None = None  # (V, B, 4): brightness, contrast, saturation (1: unchanged), hue (in turns)
    order: Tensor | None = None  # (V, B, 4): which of the four comes first, second, ...
    gray: Tensor | None = None  # bool
    sigma: Tensor | None = None  # of the blur in pixels; 0: sharp
    solarize: Tensor | None = None  # bool

    def of(self, images: slice) -> "Parameters":
        """The parameters of some of the images."""
        return Parameters(*(None if p is None else p[:, images] for p in self))  # type: ignore[arg-type]


def augment(
    images: Tensor,
    draws: Draws,
    *,
    views: int,
    size: int,
    scale: Pair = (0.08, 1.0),
    ratio: Pair = (3 / 4, 4 / 3),
    flip: Chance = 0.5,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    jitter_probability: Chance = 0.8,
    gray: Chance = 0.2,
    blur: Chance = 0.0,
    solarize: Chance = 0.0,
) -> Tensor:
    """``views`` random views of each image: (B, C, H, W), uint8 or in [0, 1] -> (V, B, C, size, size) in [0, 1].

    C is 3 (RGB) or 1. ``scale`` is the share of the picture's area in a crop, ``ratio`` the range of width / height,
    ``jitter`` the strength of brightness, contrast, saturation and hue; the rest are probabilities, of all views or one
    for each. Detached.
    """
    parameters = sample(
        draws,
        images.shape[2:],
        scale=scale,
        ratio=ratio,
        flip=flip,
        jitter=jitter,
        jitter_probability=jitter_probability,
        gray=gray,
        blur=blur,
        solarize=solarize,
    )
    if len(parameters.boxes) != views:
        raise ValueError(f"expected draws for {views} views, got draws for {len(parameters.boxes)}")
    step = len(images) if images.is_cuda else max(1, PIECE // views)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        pieces = []
        for start in range(0, len(images), step):
            own = slice(start, start + step)
            pieces.append(apply(images[own], parameters.of(own), size))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


# ---------------------------------------------------------------- drawing the parameters


def sample(
    draws: Draws,
    shape: torch.Size | tuple[int, int],
    *,
    scale: Pair,
    ratio: Pair,
    flip: Chance,
    jitter: tuple[float, float, float, float],
    jitter_probability: Chance,
    gray: Chance,
    blur: Chance,
    solarize: Chance,
) -> Parameters:
    """Parameters of every view for images of ``shape`` (height, width). Nothing is drawn for a stage that is off."""
    u = draws.uniform(4 * TRIES)
    boxes = crop_boxes(u.flatten(0, 1), shape[0], shape[1], scale, ratio).view(*u.shape[:2], 4)

    def happens(probability: Chance) -> Tensor | None:
        if isinstance(probability, tuple):
            return draws.uniform(1).squeeze(2) < constant(probability, u.device)[:, None] if any(probability) else None
        return draws.uniform(1).squeeze(2) < probability if probability > 0 else None

    flipped = happens(flip)
    factors = order = sigma = None
    jittered = happens(jitter_probability)
    if jittered is not None:
        factors, order = jitter_factors(draws.uniform(4), jitter), draws.uniform(4).argsort(dim=2)
        factors = torch.where(jittered[..., None], factors, constant((1.0, 1.0, 1.0, 0.0), u.device))
    grayed, blurred = happens(gray), happens(blur)
    if blurred is not None:
        sigma = (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws.uniform(1).squeeze(2)) * blurred
    return Parameters(boxes, flipped, factors, order, grayed, sigma, happens(solarize))


def crop_boxes(u: Tensor, height: int, width: int, scale: Pair, ratio: Pair) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop, its ten tries and its central crop, from u: (N, 40) in [0, 1).

    Returns (N, 4) int64: top, left, height, width. The area is uniform in ``scale``, the ratio width / height
    log-uniform in ``ratio``; the first try that fits into the image counts.
    """
    area, shape, top, left = u.double().view(-1, TRIES, 4).unbind(2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    shape = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shape).exp()
    h, w = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.int().argmax(dim=1)
    boxes = torch.stack([top, left, h, w], dim=2)[torch.arange(len(u), device=u.device), first].long()
    central = constant(central_box(height, width, ratio), u.device)
    return torch.where(fits.any(dim=1, keepdim=True), boxes, central)


def central_box(height: int, width: int, ratio: Pair) -> tuple[int, int, int, int]:
    """The largest central box (top, left, height, width) whose width / height is within ``ratio``."""
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_factors(u: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    """Uniform factors (..., 4) from u (..., 4): the first three around 1 but not below 0, hue around 0."""
    s = constant(strength, u.device)
    low = torch.cat([(1 - s[:3]).clamp(min=0), -s[3:]])
    high = torch.cat([1 + s[:3], s[3:]])
    return low + (high - low) * u


# ---------------------------------------------------------------- applying them


def apply(images: Tensor, parameters: Parameters, size: int) -> Tensor:
    """The views that the parameters describe: (B, C, H, W), uint8 or in [0, 1] -> (V, B, C, size, size)."""
    views, batch = parameters.boxes.shape[:2]
    _, flip, factors, order, gray, sigma, solarized = (None if p is None else p.flatten(0, 1) for p in parameters)
    images = images / 255 if images.dtype == torch.uint8 else images.float()
    x = resized_crop(images, parameters.boxes.flatten(0, 1), size, flip)
    if factors is not None and order is not None:
        x = colour_jitter(x, factors, order)
    if gray is not None:
        x = grayscale(x, gray)
    if sigma is not None:
        x = gaussian_blur(x, sigma)
    if solarized is not None:
        x = solarize_bright(x, solarized)
    return x.view(views, batch, *x.shape[1:])


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Boxes cut out, scaled to size x size, mirrored where ``flip``: (B, C, H, W) in [0, 1] -> (N, C, size, size).

    boxes: (N, 4), flip: (N,) bool, with N a multiple of B, view-major. Differentiable in the images. Equal to
    cropping and then resizing with PIL (bilinear, antialiased) up to its rounding.
    """
    batch, channels, height, width = images.shape
    views = len(boxes) // batch
    top, left, h, w = boxes.unbind(1)
    rows = interpolation(top, h, height, size).view(views, batch, size, height)
    columns = interpolation(left, w, width, size, flip).to(images.dtype)
    # all views of an image at once, so that no image is copied: (B, V size, H) @ (B, H, C W)
    rows = rows.transpose(0, 1).reshape(batch, views * size, height).to(images.dtype)
    with torch.autocast(images.device.type, enabled=False):  # bf16 would round the pixels
        x = rows @ images.transpose(1, 2).reshape(batch, height, channels * width)
        x = x.view(batch, views, size, channels, width).permute(1, 0, 3, 2, 4)
        return (x.reshape(len(boxes), channels * size, width) @ columns.mT).view(-1, channels, size, size)


def interpolation(start: Tensor, length: Tensor, size: int, out: int, flip: Tensor | None = None) -> Tensor:
    """Matrices that resample ``length`` of ``size`` pixels, from ``start`` on, to ``out``: (N,) -> (N, out, size).

    Bilinear, corners not aligned, nothing read outside the box; a triangle as wide as the step when that is above one
    pixel (antialias). Rows sum to 1; their order is reversed where ``flip``.
    """
    pixels = torch.arange(size, device=start.device)
    index = torch.arange(out, device=start.device).expand(len(start), out)
    if flip is not None:
        index = torch.where(flip[:, None], out - 1 - index, index)
    step = length[:, None] / out
    centre = start[:, None] + (index + 0.5) * step - 0.5
    weights = (1 - (pixels - centre[..., None]).abs() / step.clamp(min=1)[..., None]).clamp(min=0)
    inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def colour_jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each image by its own factors in its own order.

    x: (N, C, H, W) in [0, 1], same shape and range back; factors: (N, 4); order: (N, 4), permutations of 0..3.
    """
    for kind in order.unbind(1):
        factor = factors.gather(1, kind[:, None])[:, 0]
        x = blend(x, kind, torch.where(kind == HUE, 1, factor))
        if x.shape[1] == 3:
            turns = torch.where(kind == HUE, factor, 0)
            rows = worth_it(turns != 0)
            x[rows] = rotate_hue(x[rows], turns[rows])
    return x


def blend(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * other, clamped to [0, 1]; other is black, the mean gray or the gray picture.

    x: (N, C, H, W); kind: (N,), BRIGHTNESS, CONTRAST or SATURATION; factor: (N,), with 1 nothing changes. All three are
    one product with a (C, C) matrix.
    """
    flat, rest = x.flatten(2), 1 - factor
    luma = constant(LUMA if x.shape[1] == 3 else (1.0,), x.device)  # one channel is its own gray picture
    matrix = factor[:, None, None] * torch.eye(len(luma), device=x.device)
    matrix = matrix + (rest * (kind == SATURATION))[:, None, None] * luma
    offset = rest * (kind == CONTRAST) * (flat.mean(dim=2) @ luma)
    return torch.baddbmm(offset[:, None, None], matrix, flat).clamp_(0, 1).view(x.shape)


def rotate_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Hue moved by ``turns`` ((N,), 1 is the full circle), value and chroma kept. x: (N, 3, H, W), RGB in [0, 1].

    The closed form v - c clamp(min(k, 4 - k), 0, 1) with k = (n + 6 hue) mod 6 and n = 5, 3, 1 for R, G, B, where the
    triangle wave is written as 2 - 6 |distance to the nearest whole turn|: rounding is cheaper than a remainder.
    """
    r, g, b = x.unbind(1)
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    # lerp by 0 or 1 is exact, and twice as fast as where on a CPU
    sixth = torch.lerp(r - g + 4 * chroma, b - r + 2 * chroma, (value == g).to(x.dtype))
    sixth = torch.lerp(sixth, g - b, (value == r).to(x.dtype))
    hue = sixth / (6 * chroma).clamp(min=1e-12) + turns[:, None, None]  # gray has chroma 0 and any hue
    k = hue[:, None] + constant((3 / 6, 1 / 6, -1 / 6), x.device)[:, None, None]  # (n - 2) / 6
    wave = (k - k.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return value[:, None] - wave.mul_(chroma[:, None])


def grayscale(x: Tensor, gray: Tensor) -> Tensor:
    """The gray picture in all channels where ``gray`` ((N,) bool): no saturation is left. x: (N, C, H, W)."""
    return blend(x, torch.full_like(gray, SATURATION, dtype=torch.int64), (~gray).to(x.dtype))


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with replicated edges of x: (N, C, H, H), IN PLACE; sigma: (N,) in pixels, 0 where x stays."""
    rows = worth_it(sigma > 0)
    kernel = blur_matrix(sigma[rows], x.shape[-1])[:, None]
    x[rows] = kernel @ x[rows] @ kernel.mT
    return x


def solarize_bright(x: Tensor, chosen: Tensor) -> Tensor:
    """1 - x for pixels from 128/255 on, PIL's threshold, IN PLACE, where ``chosen`` ((N,) bool). x: (N, C, H, W)."""
    rows = worth_it(chosen)
    part = x[rows]
    x[rows] = torch.where(chosen[rows][:, None, None, None] & (part >= 128 / 255), 1 - part, part)
    return x


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """(N, size, size): row i holds the weights around pixel i; a weight beyond an edge falls on the edge."""
    reach = math.ceil(3 * SIGMA[1])
    taps = torch.arange(-reach, reach + 1, device=sigma.device)
    weights = (-0.5 * (taps / sigma[:, None].clamp(min=1e-3)) ** 2).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    pixels = torch.arange(size, device=sigma.device)
    source = (pixels[:, None] + taps).clamp(0, size - 1)  # (size, taps): the pixel that a tap reads
    reads = (source[..., None] == pixels).to(sigma.dtype)
    return torch.einsum("nt,itj->nij", weights, reads)


def worth_it(chosen: Tensor) -> Tensor | slice:
    """Rows to work on: the chosen ones; all on a GPU, where asking which would wait for the device.

    The others must carry parameters that change nothing.
    """
    return slice(None) if chosen.is_cuda else chosen.nonzero().squeeze(1)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor that stays on its device: bringing it there anew would wait for a GPU each time."""
    return torch.tensor(values, device=device)
