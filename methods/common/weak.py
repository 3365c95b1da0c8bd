"""The weak augmentation of supervised training: an image shifted by a few pixels on black, and mirrored or not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.common.augment import Draws


@torch.no_grad()
def padded_crop(images: Tensor, draws: Draws, *, padding: float, flip: float) -> Tensor:
    """Views (V, B, C, H, H) in [0, 1] of images (B, C, H, H), or of views of them (V, B, C, H, H), uint8 or in [0, 1].

    Each is padded with black by ``padding`` of its side, rounded to pixels, cropped at a uniform place, and mirrored
    with probability ``flip``. V is that of the draws. As torchvision's RandomCrop and RandomHorizontalFlip.
    """
    side = images.shape[-1]
    pixels = round(padding * side)
    top, left, mirrored = draws.uniform(3).unbind(2)  # (V, B)
    images = images / 255 if images.dtype == torch.uint8 else images.float()
    padded = F.pad(images, (pixels,) * 4).expand(len(top), *images.shape[-4:-2], -1, -1)
    places = torch.arange(side, device=images.device)
    rows = (top * (2 * pixels + 1)).floor().long()[..., None] + places  # (V, B, H)
    columns = (left * (2 * pixels + 1)).floor().long()[..., None] + places
    columns = torch.where((mirrored < flip)[..., None], columns.flip(2), columns)
    view, image, channel = (torch.arange(count, device=images.device) for count in padded.shape[:3])
    return padded[
        view[:, None, None, None, None],
        image[:, None, None, None],
        channel[:, None, None],
        rows[:, :, None, :, None],
        columns[:, :, None, None, :],
    ]
