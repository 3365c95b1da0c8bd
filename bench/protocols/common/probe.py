"""The linear probe: one rule for all methods (protocol 1.2), and the protocols that are such a probe."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.common.base import predicted
from bench.protocols.common.base import BaseProtocol, Fitted, Material, facts_of
from bench.protocols.common.classifier import Classifier
from bench.protocols.common.features import Rows, finite
from bench.protocols.common.logistic import Problem, Spectrum, objective
from bench.spec import UsageError

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
    1e-6 at the end. Both steps are folded into the layer that is returned, so it reads plain features. They are read
    in pieces, so those of a file may be larger than the memory; the layer is on the device of the labels (N,).

    Images with a feature that is not finite are left out; held out, they count as wrong. Raises ValueError where
    nothing is left to fit.
    """
    held, sound = held_out(len(features)), finite(features)
    judged = int(held.sum())
    if not bool((sound & ~held).any()):
        raise ValueError("expected finite features to fit a probe on, got NaN or infinity for every image")
    plain = rows = Rows.standardized(features, labels, sound, classes)
    basis = None
    if len(plain) < features.shape[1]:  # the optimum lies in the span of the features
        rows, basis = in_their_span(plain)
        held = held[sound]
    spectrum = Spectrum.of(rows)
    search = Problem(rows.of(~held), spectrum)
    penalties = sorted(PENALTIES, reverse=True)
    solutions = {penalty: search.solve(penalty) for penalty in penalties}  # each starts from the one before it
    hits = dict.fromkeys(penalties, 0)
    for x, right in rows.of(held):
        for value, w in solutions.items():
            hits[value] += int(predicted(x @ w[:, :-1].T + w[:, -1]).eq(right).sum())
    counts = [(value, correct, judged) for value, correct in hits.items()]
    penalty = largest_within_error(counts)
    final = Problem(rows, spectrum)
    layers: dict[float, nn.Linear] = {}
    norms: dict[float, float] = {}
    for value in (10 * penalty, penalty, penalty / 10):
        w = final.solve(value)
        if basis is not None:
            w = torch.cat([w[:, :-1] @ basis.T, w[:, -1:]], dim=1)
        norms[value] = float(objective(plain, w, value)[1].norm())  # in the features' own coordinates
        weight = w[:, :-1] / plain.scale
        layers[value] = linear(weight, w[:, -1] - weight @ plain.mean)
    chosen = layers.pop(penalty)
    return Fit(chosen, penalty, norms[penalty], plain.scale, counts, layers)


def in_their_span(rows: Rows) -> tuple[Rows, Tensor]:
    """The same images in coordinates of their span, and its orthonormal basis (F, R): features = coordinates @ basis.T.

    For fewer images than features. A rotation changes neither the penalty nor any norm, so the solution is the same.
    """
    parts = list(rows)
    x, labels = torch.cat([x for x, _ in parts]), torch.cat([right for _, right in parts])
    values, vectors = torch.linalg.eigh(x @ x.T)
    keep = values > values[-1] * 1e-14
    lengths, vectors = values[keep].sqrt(), vectors[:, keep]
    every = torch.ones(len(x), dtype=torch.bool)
    coordinates = Rows(vectors * lengths, labels, every, rows.classes, lengths.new_zeros(len(lengths)))
    return coordinates, x.T @ vectors / lengths


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
