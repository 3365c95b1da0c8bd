"""LARS, one parameter after the other."""

from collections.abc import Iterable

import torch
from torch import Tensor


class LARS:
    """Nesterov SGD whose rate for each weight is clipped to min(lr, eta |w| / (|g| + decay |w| + eps)).

    You et al., 2017 (arXiv:1708.03888). Vectors (biases, gains of batch norm) take the plain gradient at the rate lr.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        eta: float = 0.005,
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.momentum, self.weight_decay, self.eta, self.eps = lr, momentum, weight_decay, eta, eps
        self.velocities: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for w in self.parameters:
            w.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for w in self.parameters:
            if w.grad is None:
                continue
            if w not in self.velocities:
                self.velocities[w] = torch.zeros_like(w)
            velocity = self.velocities[w]
            gradient = w.grad if w.ndim == 1 else self.clipped(w, w.grad)
            velocity.mul_(self.momentum).add_(gradient)
            w.sub_(self.lr * (gradient + self.momentum * velocity))

    def clipped(self, w: Tensor, gradient: Tensor) -> Tensor:
        """The decayed gradient of one weight, shortened where the layer's own rate is below lr; 0 where it is 0."""
        w_norm, g_norm = float(w.norm()), float(gradient.norm())
        if g_norm == 0:
            return gradient
        if w_norm == 0:
            return gradient + self.weight_decay * w
        rate = self.eta * w_norm / (g_norm + self.weight_decay * w_norm + self.eps)
        return (gradient + self.weight_decay * w) * min(rate / self.lr, 1.0)
