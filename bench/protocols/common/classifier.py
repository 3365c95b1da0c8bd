"""Classifiers on frozen features, as modules that any attack can be pointed at: functions of the pixels alone.

One reads the features of the whole image, another the mean features over ONE fixed list of crop boxes, the same for
every image in training features, test features and attacks (protocol 1.1).
"""

import torch
from torch import Tensor, nn

from bench.data.pixels import Pixels
from bench.encoders.common.base import FeatureEncoder
from bench.protocols.common.features import room
from bench.random import stream
from methods.common.augment import crop_boxes, interpolation

MULTI_PATCH_SCALE, MULTI_PATCH_RATIO = (0.25, 1.0), (3 / 4, 4 / 3)


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K) from the features of the whole image.

    ``probe`` may be any module that makes logits (B, K) of features (B, F).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.probe: nn.Module = nn.Identity()  # until one is fitted, the features themselves

    def crops(self, images: Tensor) -> Tensor:
        """What the encoder looks at: (B, n, C, H, W), here the image itself."""
        return images[:, None]

    def features_of_crops(self, crops: Tensor) -> Tensor:
        """Mean features (B, F) of crops (B, n, C, H, W)."""
        batch, count = crops.shape[:2]
        features: Tensor = self.encoder(crops.flatten(0, 1)).unflatten(0, (batch, count)).mean(dim=1)
        return features

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        return self.features_of_crops(self.crops(images))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.probe(self.features(images))
        return logits


class MultiPatch(Classifier):
    """The mean features over fixed crops, each cut and resized to the image's size; differentiable end to end.

    The crops are linear in the pixels: two matrix products with interpolation matrices. One box of the whole image is
    the identity matrix, so the logits equal those of ``Classifier`` to the last bit.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, encoder: nn.Module, boxes: Tensor, size: tuple[int, int]) -> None:
        super().__init__(encoder)
        height, width = size
        top, left, box_height, box_width = boxes.unbind(dim=1)
        self.register_buffer("rows", interpolation(top, box_height, height, height).float())  # (n, H, H)
        self.register_buffer("columns", interpolation(left, box_width, width, width).float())  # (n, W, W)

    def crops(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        count = len(self.rows)
        # one product for all rows of all crops, then one for each crop: far fewer than one for each image and crop
        rows = self.rows.flatten(0, 1) @ images.permute(2, 0, 1, 3).flatten(1)  # (n * H, B * C * W)
        crops = torch.bmm(rows.view(count, -1, width), self.columns.mT).view(count, height, batch, channels, width)
        # one copy, into the layout in which the convolutions read: channels innermost
        return crops.permute(2, 0, 1, 4, 3).contiguous().permute(0, 1, 4, 2, 3)


class OfCrops(nn.Module):
    """The same classifier seen from its crops (B, n, C, H, W): what an attack in crop space moves."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.classifier.probe(self.classifier.features_of_crops(crops))
        return logits


def backbone_of(encoder: nn.Module) -> nn.Module:
    """The part of an encoder that comes before its feature layer; all of one that has none, as those of others."""
    return encoder.backbone if isinstance(encoder, FeatureEncoder) else encoder


def fixed_boxes(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """The list of ``count`` crop boxes (count, 4): top, left, height, width. One scale range for all ranked rows."""
    u = torch.rand(count, 40, generator=stream(seed, "crops"))
    return crop_boxes(u, size[0], size[1], MULTI_PATCH_SCALE, MULTI_PATCH_RATIO)


@torch.no_grad()
def extract(classifier: Classifier, images: Tensor | Pixels, device: torch.device, chunk: int) -> Tensor:
    """Features (N, F) of uint8 images (N, C, H, W), in chunks, in float32; see ``room`` for where they are."""
    features, start = torch.empty(0, 0), 0
    for part in images.split(chunk):
        some = classifier.features(part.to(device).float() / 255)
        if not start:
            features = room(len(images), some.shape[1], device)
        features[start : start + len(some)] = some
        start += len(some)
    return features
