"""Random views one picture at a time, by PIL and torchvision."""

import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as TF

Pair = tuple[float, float]


def augment(
    images: Tensor,
    views: int,
    *,
    scale: Pair,
    ratio: Pair,
    flip: float,
    jitter: tuple[float, float, float, float],
    jitter_probability: float,
    gray: float,
    blur: float,
    solarize: float,
) -> Tensor:
    """``views`` random views of each picture: uint8 (B, 3, H, H) -> (V, B, 3, H, H) in [0, 1].

    Draws come from the global generators of torch and Python. Settings as in ``methods.common.augment``.
    """
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(images.shape[-1], scale=scale, ratio=ratio),
            transforms.RandomHorizontalFlip(flip),  # type: ignore[no-untyped-call]
            transforms.RandomApply([transforms.ColorJitter(*jitter)], p=jitter_probability),  # type: ignore[no-untyped-call]
            transforms.RandomGrayscale(gray),  # type: ignore[no-untyped-call]
            sometimes(blurred, blur),
            sometimes(ImageOps.solarize, solarize),
            transforms.ToTensor(),
        ]
    )
    pictures = [TF.to_pil_image(image) for image in images]  # type: ignore[no-untyped-call]
    return torch.stack([torch.stack([transform(picture) for picture in pictures]) for _ in range(views)])


def blurred(picture: Image.Image) -> Image.Image:
    """Gaussian blur with a standard deviation between 0.1 and 2 pixels."""
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def sometimes(change: Callable[[Image.Image], Image.Image], p: float) -> Callable[[Image.Image], Image.Image]:
    """The change with probability p, else the picture as it is."""
    return lambda picture: change(picture) if random.random() < p else picture
