"""The high frequencies of images, which are another view of them (Fan et al., 2021, arXiv:2111.01124)."""

import torch
from torch import Tensor


def high_pass(images: Tensor, radius: float) -> Tensor:
    """Images (..., H, H) without the frequencies within ``radius`` of zero: real, around zero, in no fixed range.

    ``radius`` is a share of the side; frequencies on the circle stay.
    """
    side = images.shape[-1]
    frequencies = torch.fft.fftfreq(side, d=1 / side, device=images.device)  # whole numbers
    distance = torch.hypot(frequencies[:, None], frequencies)
    with torch.autocast(images.device.type, enabled=False):
        spectrum = torch.fft.fft2(images if images.dtype == torch.float64 else images.float())
        high: Tensor = torch.fft.ifft2(spectrum * (distance >= radius * side)).real
    return high.to(images.dtype)
