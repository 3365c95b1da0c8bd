"""Protocols: how frozen features become predictions, as modules that any attack can be pointed at.

``linear`` reads the features of the whole image; ``multi_patch`` the mean features over ONE fixed list of crop boxes,
the same for every image in training features, test features and attacks, so that the classifier is a function of the
pixels alone (protocol 1.1). The probe is one rule for all methods (protocol 1.2): ``fit_probe``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.common.base import predicted
from bench.data.pixels import Pixels
from bench.random import stream
from methods.common.augment import crop_boxes, interpolation

TOLERANCE = 5e-7  # of the gradient's norm: half of what protocol 1.2 asks, as rounding to float32 comes after it
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # lambda
MULTI_PATCH_SCALE, MULTI_PATCH_RATIO = (0.25, 1.0), (3 / 4, 4 / 3)


class Classifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K) from the features of the whole image."""

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
    the identity matrix, so the logits equal those of ``linear`` to the last bit.
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


def fixed_boxes(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """The list of ``count`` crop boxes (count, 4): top, left, height, width. One scale range for all ranked rows."""
    u = torch.rand(count, 40, generator=stream(seed, "crops"))
    return crop_boxes(u, size[0], size[1], MULTI_PATCH_SCALE, MULTI_PATCH_RATIO)


def build_classifier(
    protocol: str, encoder: nn.Module, size: tuple[int, int], crops: int, crop_seed: int
) -> Classifier:
    """The classifier of a protocol, without its probe; frozen and in eval mode."""
    if protocol == "multi_patch":
        classifier: Classifier = MultiPatch(encoder, fixed_boxes(crops, size, crop_seed), size)
    else:
        classifier = Classifier(encoder)
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def extract(classifier: Classifier, images: Tensor | Pixels, device: torch.device, chunk: int) -> Tensor:
    """Features (N, F) of uint8 images (N, C, H, W), in chunks, in float32."""
    parts = [classifier.features(part.to(device).float() / 255) for part in images.split(chunk)]
    return torch.cat(parts)


# ---------------------------------------------------------------- the probe


@dataclass(frozen=True)
class Fit:
    """A fitted probe and how it came about."""

    layer: nn.Linear
    penalty: float
    gradient_norm: float
    scale: float
    held_out: list[tuple[float, int, int]]
    others: dict[float, nn.Linear]  # lambda/10 and 10 lambda, for the probe band


def held_out(count: int) -> Tensor:
    """Which of the training images (N,) judge a probe that is fitted on the others: every fifth of a shuffle."""
    return torch.arange(count) % 5 == 4


def fit_probe(features: Tensor, labels: Tensor, classes: int) -> Fit:
    """Multinomial logistic regression on features (N, F): mean cross-entropy + lambda/2 |W|^2, protocol 1.2.

    Features are centred and divided by one number, their RMS. Lambda is the largest of ``PENALTIES`` whose accuracy on
    held-out training images (every fifth) is within one standard error of the best. The gradient's norm is at most
    1e-6 at the end. Both steps are folded into the layer that is returned, so it reads plain features.

    Images with a feature that is not finite are left out; held out, they count as wrong. Raises ValueError where
    nothing is left to fit.
    """
    held = held_out(len(features)).to(features.device)
    judged = int(held.sum())
    sound = features.isfinite().all(dim=1)
    if not bool(sound.all()):
        features, labels, held = features[sound], labels[sound], held[sound]
        if bool(held.all()):
            raise ValueError("expected finite features to fit a probe on, got NaN or infinity for every image")
    x = features.double()
    mean = x.mean(dim=0)
    x = x - mean
    scale = float(x.square().mean().sqrt().clamp_min(1e-12))
    x = x / scale
    search = Problem(x[~held], labels[~held], classes)
    counts: list[tuple[float, int, int]] = []
    for penalty in sorted(PENALTIES, reverse=True):  # each starts from the solution before it
        weight, bias = search.solve(penalty)
        correct = int(predicted(x[held] @ weight.T + bias).eq(labels[held]).sum())
        counts.append((penalty, correct, judged))
    best = max(correct / total for _, correct, total in counts)
    error = math.sqrt(best * (1 - best) / counts[0][2])
    penalty = next(penalty for penalty, correct, total in counts if correct / total >= best - error)
    final = Problem(x, labels, classes)
    layers: dict[float, nn.Linear] = {}
    norms: dict[float, float] = {}
    for value in (10 * penalty, penalty, penalty / 10):
        weight, bias = final.solve(value)
        norms[value] = final.gradient_norm(weight, bias, value)
        layers[value] = linear(weight / scale, bias - weight @ mean / scale)
    chosen = layers.pop(penalty)
    return Fit(chosen, penalty, norms[penalty], scale, counts, layers)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen float32 layer of these numbers, (K, F) and (K,), where they are; nothing is drawn to make it."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    layer.eval()
    return layer


class Problem:
    """Logistic regression in the eigenbasis of the features, by Newton's method (Nocedal & Wright, 2006, alg. 7.1).

    The optimum lies in the span of the features, and a rotation changes neither the penalty nor any norm, so the
    solution is exact; only its rounding to float32 comes later. In this basis the Hessian is nearly diagonal, and each
    Newton system takes a few conjugate gradients, in float32: a step may be inexact. All that decides is in float64.
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        self.x, self.labels, self.classes = x, labels, classes
        wide = x.shape[1] > len(x)
        values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        keep = values > values[-1] * 1e-14
        values, vectors = values[keep], vectors[:, keep]
        self.basis = x.T @ vectors / values.sqrt() if wide else vectors  # (F, R), orthonormal
        self.z = torch.cat([x @ self.basis, x.new_ones(len(x), 1)], dim=1)  # (N, R + 1), the last one for the bias
        self.rounded = self.z.float()
        self.start = x.new_zeros(classes, self.z.shape[1])

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """(weight (K, F), bias (K,)) with a gradient norm of at most TOLERANCE; starts from the last solution."""
        z, n = self.z, len(self.z)
        targets = F.one_hot(self.labels, self.classes)
        ridge = z.new_full(z.shape[1:], penalty)
        ridge[-1] = 0  # the bias is free
        penalties = ridge.float()
        w = self.start
        logits = z @ w.T

        def objective(logits: Tensor, w: Tensor) -> float:
            return float(F.cross_entropy(logits, self.labels) + (ridge * w.square()).sum() / 2)

        for _ in range(200):
            p = logits.softmax(dim=1)
            gradient = (p - targets).T @ z / n + ridge * w
            norm = float(gradient.norm())
            if norm <= TOLERANCE:
                break

            p = p.float()

            def curve(d: Tensor, p: Tensor = p) -> Tensor:
                """The Hessian times d (K, R + 1)."""
                change = p * (self.rounded @ d.T)
                return (change - p * change.sum(dim=1, keepdim=True)).T @ self.rounded / n + penalties * d

            diagonal = (p * (1 - p)).T @ self.rounded.square() / n + penalties
            step = conjugate_gradients(curve, -gradient.float(), diagonal, max(norm / 4, TOLERANCE / 2)).double()
            change, slope = z @ step.T, float((gradient * step).sum())
            value, size = objective(logits, w), 1.0
            rounding = 1e-14 * max(value, 1.0)
            while objective(logits + size * change, w + size * step) > value + 1e-4 * size * slope + rounding:
                size /= 2  # Armijo's rule; the logits are linear in w, so no pass over the features
            w, logits = w + size * step, logits + size * change
        self.start = w
        return w[:, :-1] @ self.basis.T, w[:, -1]

    def gradient_norm(self, weight: Tensor, bias: Tensor, penalty: float) -> float:
        """Euclidean norm of the objective's gradient in the scaled features' own coordinates."""
        residual = (self.x @ weight.T + bias).softmax(dim=1) - F.one_hot(self.labels, self.classes)
        residual = residual / len(self.x)
        gradient = torch.cat([residual.T @ self.x + penalty * weight, residual.sum(dim=0)[:, None]], dim=1)
        return float(gradient.norm())


def conjugate_gradients(curve: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor, tolerance: float) -> Tensor:
    """x with |curve(x) - b| at most ``tolerance`` (250 steps at most), preconditioned by the diagonal of ``curve``."""
    x, residual = torch.zeros_like(b), b
    scaled = residual / diagonal.clamp_min(1e-12)
    direction, product = scaled, (residual * scaled).sum()
    for _ in range(250):
        curved = curve(direction)
        length = product / (direction * curved).sum()
        x, residual = x + length * direction, residual - length * curved
        if float(residual.norm()) <= tolerance:
            break
        scaled = residual / diagonal.clamp_min(1e-12)
        before, product = product, (residual * scaled).sum()
        direction = scaled + product / before * direction
    return x


def fit_published_probe(features: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Linear:
    """The paper's own probe (``published_eval``): Linear, Adam 3e-4, 20 epochs, batches of 256, last one dropped.

    Images with a feature that is not finite are left out.
    """
    sound = features.isfinite().all(dim=1)
    if not bool(sound.all()):
        features, labels = features[sound], labels[sound]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "published-probe").initial_seed())
        layer = nn.Linear(features.shape[1], classes).to(features.device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-4)
    generator = stream(seed, "published-probe-batches")
    batch = min(256, len(features))
    for _ in range(20):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for ids in order.split(batch)[: len(features) // batch]:
            optimizer.zero_grad()
            F.cross_entropy(layer(features[ids]), labels[ids]).backward()
            optimizer.step()
    return layer.eval().requires_grad_(False)
