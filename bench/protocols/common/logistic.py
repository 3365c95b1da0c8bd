"""Multinomial logistic regression on features that need not fit into the memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.protocols.common.features import Rows

TOLERANCE = 5e-7  # of the gradient's norm: half of what protocol 1.2 asks, as rounding to float32 comes after it
SAMPLE = 2**16  # images whose curvature stands for that of all; of fewer, all of them are taken
INEXACT = 0.1  # a Newton step solves its system up to this share of the gradient


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (F,) and eigenvectors (F, F) of the features' second moments, in float32."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "Spectrum":
        """Of the features of at most SAMPLE images: it only makes steps cheap, and decides nothing."""
        sample = rows.sample(SAMPLE)
        values, vectors = torch.linalg.eigh((sample.T @ sample).double() / len(sample))
        return cls(values.clamp_min(0).float(), vectors.float())


def objective(rows: Rows, w: Tensor, penalty: float) -> tuple[float, Tensor]:
    """Mean cross-entropy + penalty/2 |W|^2 at ``w`` (K, F + 1), whose last column is the bias, and its gradient.

    One pass over the features; all sums are in float64.
    """
    value, gradient = 0.0, torch.zeros_like(w)
    for x, labels in rows:
        answers = (x @ w[:, :-1].T + w[:, -1]).log_softmax(dim=1)
        value -= float(answers.gather(1, labels[:, None]).sum())
        residual = answers.exp() - F.one_hot(labels, len(w))
        gradient[:, :-1] += residual.T @ x
        gradient[:, -1] += residual.sum(dim=0)
    gradient /= len(rows)
    gradient[:, :-1] += penalty * w[:, :-1]
    return value / len(rows) + penalty / 2 * float(w[:, :-1].square().sum()), gradient


class Problem:
    """Logistic regression by Newton's method with inexact steps (Nocedal & Wright, 2006, algorithm 7.1).

    All that decides, the objective and its gradient, is of all images and in float64. A step need not be exact: its
    Hessian is that of at most SAMPLE images (Byrd et al., 2011, doi:10.1137/10079923X), in float32. Where a step does
    not halve the gradient, the sample says too little of the other images, and from then on the Hessian is that of all.
    Conjugate gradients are preconditioned by the Hessian of features that do not depend on the classes, which the
    ``spectrum`` inverts, so that they are few.
    """

    def __init__(self, rows: Rows, spectrum: Spectrum) -> None:
        self.rows, self.spectrum = rows, spectrum
        self.sample = rows.sample(SAMPLE)
        self.enough = True  # whether its Hessian stands for that of all
        self.start = rows.mean.new_zeros(rows.classes, len(rows.mean) + 1)

    def solve(self, penalty: float) -> Tensor:
        """(K, F + 1), the bias last, with a gradient norm of at most TOLERANCE; starts from the last solution."""
        w = self.start
        value, gradient = objective(self.rows, w, penalty)
        for _ in range(200):
            norm = float(gradient.norm())
            if norm <= TOLERANCE:
                break
            step = self.step(w, gradient, penalty, max(norm * INEXACT, TOLERANCE / 2))
            slope, size = float((gradient * step).sum()), 1.0
            rounding = 1e-14 * max(value, 1.0)
            moved = objective(self.rows, w + step, penalty)
            while moved[0] > value + 1e-4 * size * slope + rounding:  # Armijo's rule
                size /= 2
                moved = objective(self.rows, w + size * step, penalty)
            w, (value, gradient) = w + size * step, moved
            slow = float(gradient.norm()) > max(norm / 2, TOLERANCE)
            self.enough = len(self.sample) == len(self.rows) or (self.enough and not slow)
        self.start = w
        return w

    def step(self, w: Tensor, gradient: Tensor, penalty: float, tolerance: float) -> Tensor:
        """Newton's step (K, F + 1) at ``w``, its system solved up to ``tolerance``."""
        values, vectors = self.spectrum.values, self.spectrum.vectors
        weight = w.float()
        ridge = weight.new_full((w.shape[1],), penalty)
        ridge[-1] = 0  # the bias is free

        def answers(x: Tensor) -> Tensor:
            return (x @ weight[:, :-1].T + weight[:, -1]).softmax(dim=1)

        p = answers(self.sample)
        spread = (p * (1 - p)).mean(dim=0)[:, None].clamp_min(1e-12)  # (K, 1)

        def curve(d: Tensor) -> Tensor:
            """The Hessian times d (K, F + 1)."""
            total, count = torch.zeros_like(d), 0
            pairs = [(self.sample, p)] if self.enough else ((x.float(), answers(x.float())) for x, _ in self.rows)
            for x, answered in pairs:
                change = answered * (x @ d[:, :-1].T + d[:, -1])
                change -= answered * change.sum(dim=1, keepdim=True)
                total[:, :-1] += change.T @ x
                total[:, -1] += change.sum(dim=0)
                count += len(x)
            return total / count + ridge * d

        def solved(r: Tensor) -> Tensor:
            """What r (K, F + 1) would be the Hessian's product of, if p did not depend on the features."""
            inner = (r[:, :-1] @ vectors) / (spread * values + penalty) @ vectors.T
            return torch.cat([inner, r[:, -1:] / spread], dim=1)

        return conjugate_gradients(curve, solved, -gradient.float(), tolerance).double()


def conjugate_gradients(
    curve: Callable[[Tensor], Tensor], solved: Callable[[Tensor], Tensor], b: Tensor, tolerance: float
) -> Tensor:
    """x with |curve(x) - b| at most ``tolerance``, in 250 steps at most; ``solved`` nearly inverts ``curve``."""
    x, residual = torch.zeros_like(b), b
    direction = scaled = solved(residual)
    product = (residual * scaled).sum()
    for _ in range(250):
        curved = curve(direction)
        length = product / (direction * curved).sum()
        x, residual = x + length * direction, residual - length * curved
        if float(residual.norm()) <= tolerance:
            break
        scaled = solved(residual)
        before, product = product, (residual * scaled).sum()
        direction = scaled + product / before * direction
    return x
