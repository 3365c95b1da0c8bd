"""Synthetic: 256 train and 128 test images of 10 smooth patterns under noise, 3x16x16, generated; for tests only."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench.data.images import ImageSet, Split
from bench.datasets import digits

TRAIN_IMAGES, TEST_IMAGES, CLASSES = 256, 128, 10
NOISE = 0.15  # standard deviation, as a fraction of the pixel range


class Dataset(digits.Dataset):
    """Other images under the settings of digits."""

    def load(self, root: Path, split: Split) -> ImageSet:
        rng = np.random.Generator(np.random.PCG64(0))
        coarse = torch.from_numpy(rng.random((CLASSES, 3, 4, 4), dtype=np.float32))
        patterns = F.interpolate(coarse, size=16, mode="bicubic", align_corners=False)
        noise = torch.from_numpy(rng.standard_normal((TRAIN_IMAGES + TEST_IMAGES, 3, 16, 16), dtype=np.float32))
        labels = torch.arange(len(noise)) % CLASSES
        images = (patterns[labels] + NOISE * noise).clamp(0, 1).mul(255).round().to(torch.uint8)
        part = slice(TRAIN_IMAGES) if split == "train" else slice(TRAIN_IMAGES, None)
        return ImageSet(images[part], labels[part], classes=CLASSES, label="synthetic")
