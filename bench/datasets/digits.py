"""Digits: 1,797 handwritten digits, 1x16x16 (8x8 enlarged), 1,500 train and 297 test, from scikit-learn (UCI 80)."""

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F

from bench.data.images import BaseDataset, ImageSet, Split, balanced_order

TEST_IMAGES = 297


class Dataset(BaseDataset):
    encoder = "resnet8"
    eps = (0.05, 0.1)
    main_eps = 0.1
    crops = 4
    level = "quick"
    OVERRIDES: ClassVar = {
        "all": {
            "feature_width": 256,
            "hidden_width": 256,
            "embedding_width": 128,
            "flip": 0.0,  # a mirrored 2 is no 2
            "jitter": (0.4, 0.0, 0.0, 0.0),
            "jitter_probability": 0.8,
            "gray": 0.0,
            "blur": 0.0,
            "solarize": 0.0,
            "eps": 0.1,
            "step": 0.032,
        },
        "multi": {"views": 4, "batch": 50},
        "multi pgd": {"batch": 32},
        "pair": {"batch": 100},
        "crop": {"crop_scale": (0.3, 1.0)},
        "distilled": {"student_batch": 100, "teacher_share": 0.5, "student_lr": 0.2},
        # Against batch statistics its loss stays at that of equal similarities, and no robustness comes of it.
        "clustered": {"teacher_share": 0.25, "student_lr": 0.05, "attack_batch_norm": "eval"},
        "dual": {"trust": 0.02},
    }

    def load(self, root: Path, split: Split) -> ImageSet:
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        images = torch.from_numpy(digits.images).float()[:, None]  # 0..16
        images = F.interpolate(images, size=16, mode="bilinear", align_corners=False) * 255 / 16
        order = balanced_order(labels)
        part = order[:TEST_IMAGES] if split == "test" else order[TEST_IMAGES:]
        pixels = images.round().to(torch.uint8)
        return ImageSet(pixels[part], labels[part], classes=10, label="digits", mirrors=False)
