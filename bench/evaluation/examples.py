"""Adversarial examples as pictures: the first test images, what an attack made of them, and what is then predicted.

Every method shows the same images. They are stored as PNG, so that reports need no tensors.
"""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from bench.evaluation.evaluated import Evaluated
from bench.evaluation.search import predict
from bench.protocols.common.base import protocol_of
from bench.storage.store import Example, Examples, RunFolder

COUNT = 6  # images for each protocol
LARGEST = 48  # pixels of a side: the report holds all pictures of all methods


def examples(it: Evaluated[RunFolder]) -> None:
    """Write ``examples/<protocol>.json`` for each ranked protocol whose attacks have left images.

    The picture is PGD's, but AutoAttack's where it broke an image that PGD did not.
    """
    test, device, folder = it.test, it.device, it.cells
    for protocol in (protocol for protocol in it.spec.protocols if protocol_of(it.spec, protocol).ranked):
        classifier = it.stored_classifier(protocol)
        if classifier is None:
            continue
        by_place: dict[int, Example] = {}
        for attack in ("pgd", "autoattack"):
            kept = folder.adversarial(protocol, attack)
            result = folder.last_with_images(protocol, attack)
            if kept is None or result is None:
                continue
            moved = kept[:COUNT]
            images = test.pictures(slice(len(moved)), "cpu")
            before = predict(classifier, images.to(device), COUNT).tolist()
            after = predict(classifier, moved.to(device), COUNT).tolist()
            for place, label in enumerate(test.labels[: len(moved)].tolist()):
                if place in by_place and (by_place[place].after != label or after[place] == label):
                    continue
                by_place[place] = Example(
                    label=label,
                    before=before[place],
                    after=after[place],
                    attack=attack,
                    image=picture(images[place]),
                    adversarial=picture(moved[place]),
                    perturbation=picture(magnified(moved[place] - images[place], result.eps)),
                )
        if by_place:
            pictures = [by_place[place] for place in sorted(by_place)]
            folder.save_examples(Examples(protocol=protocol, eps=it.spec.main_eps, examples=pictures))


def magnified(difference: Tensor, eps: float) -> Tensor:
    """The perturbation as an image in [0, 1]: grey where nothing moved, black and white at -eps and eps."""
    return 0.5 + difference / (2 * eps) if eps else torch.full_like(difference, 0.5)


def picture(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] as PNG in base64, made smaller where a side is longer than LARGEST."""
    pixels = (image.clamp(0, 1) * 255).round().byte()
    array = pixels[:3].permute(1, 2, 0) if len(pixels) >= 3 else pixels[0]
    drawn = Image.fromarray(array.contiguous().numpy())
    drawn.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    drawn.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
