"""The linear probe: one rule for all methods (protocol 1.2), and the protocols that are such a probe."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.common.base import predicted
from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier
from bench.spec import UsageError

TOLERANCE = 5e-7  # of the gradient's norm: half of what protocol 1.2 asks, as rounding to float32 comes after it
GRADIENT_NORM = 1e-6  # what protocol 1.2 asks
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # lambda


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
    penalty = largest_within_error(counts)
    final = Problem(x, labels, classes)
    layers: dict[float, nn.Linear] = {}
    norms: dict[float, float] = {}
    for value in (10 * penalty, penalty, penalty / 10):
        weight, bias = final.solve(value)
        norms[value] = final.gradient_norm(weight, bias, value)
        layers[value] = linear(weight / scale, bias - weight @ mean / scale)
    chosen = layers.pop(penalty)
    return Fit(chosen, penalty, norms[penalty], scale, counts, layers)


def largest_within_error(held_out: list[tuple[float, int, int]]) -> float:
    """The largest penalty within one standard error of the best accuracy; (penalty, correct, total) of each."""
    best = max(correct / total for _, correct, total in held_out)
    error = math.sqrt(best * (1 - best) / held_out[0][2])
    return max(penalty for penalty, correct, total in held_out if correct / total >= best - error)


@dataclass(frozen=True)
class LinearProtocol(BaseProtocol):
    """A protocol whose probe is one linear layer; as it is, that of protocol 1.2."""

    def choice(self, held_out: list[tuple[float, int, int]]) -> float:
        return largest_within_error(held_out) if held_out else math.nan

    def fit(self, classifier: Classifier, material: Material) -> Fitted:
        features = material.features(classifier)
        fit = fit_probe(features, material.labels, material.train.classes)
        classifier.probe = fit.layer
        facts = {name: getattr(fit, name) for name in ("penalty", "gradient_norm", "scale", "held_out")}
        if fit.gradient_norm > GRADIENT_NORM:
            facts["note"] = f"the probe did not converge: gradient norm {fit.gradient_norm:.2g} above {GRADIENT_NORM:g}"
        return Fitted(facts_of(fit.layer, features, material, **facts), {**fit.others})

    def restore(self, classifier: Classifier, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != {"weight", "bias"}:
            raise UsageError(f"expected a weight and a bias of a linear probe, got {', '.join(sorted(tensors))}")
        classifier.probe = linear(tensors["weight"], tensors["bias"])


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
