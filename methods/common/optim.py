"""Optimizers by name, LARS among them as the paper's released code has it, and the learning rate over a budget."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

OptimizerName = Literal["lars", "sgd", "adamw"]


class LARS(torch.optim.Optimizer):
    """SGD with Nesterov momentum under clipped layer-wise rates (LARC); You et al., 2017, arXiv:1708.03888.

    Each parameter that is not a vector moves at the rate min(lr, eta |w| / (|g| + weight_decay |w| + eps)), so lr is
    only a ceiling for it. Vectors (biases, gains of batch norm) take the plain gradient at the full lr, undecayed.
    Nothing in a step waits for the device. The parameters of one group live on one device.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        eta: float = 0.005,
        eps: float = 1e-8,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "eta": eta, "eps": eps}.items():
            if not value >= 0:
                raise ValueError(f"expected {name} >= 0, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"expected momentum in [0, 1), got {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "eps": eps})
        first: Tensor = self.param_groups[0]["params"][0]
        # (update, weight) pairs so far: those in which lr was the lower of the two rates, and all
        self.schedule_meter = torch.zeros(2, dtype=torch.float64, device=first.device)

    @property
    def schedule_active(self) -> float | None:
        """Share of (update, weight) in which the schedule's lr decided and not the layer's own rate; waits."""
        decided, pairs = self.schedule_meter.tolist()
        return decided / pairs if pairs else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; parameters without a gradient stay. Returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            others = [w for w in weights if w.ndim != 1]
            if weights:
                share = adapt(others, group)
                self._descend(weights, gradients_of(weights), group)
                self.schedule_meter[0] += (share >= 1).sum()
                self.schedule_meter[1] += len(others)
        return loss

    def _descend(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """SGD with Nesterov momentum, in place; the gradients are used up."""
        lr, momentum = group["lr"], group["momentum"]
        for w in weights:
            if not self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        buffers = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(gradients, buffers, alpha=momentum)
        torch._foreach_add_(weights, gradients, alpha=-lr)


def adapt(weights: list[Tensor], group: dict[str, Any]) -> Tensor:
    """Make the gradient of each weight (g + weight_decay w) share; returns the shares min(rate / lr, 1) as in LARS.

    In place: a copy of the gradients would be a tenth of the memory of a step.
    """
    if not weights:
        return torch.zeros(0)
    gradients = gradients_of(weights)
    w_norm = torch.stack(torch._foreach_norm(weights))
    g_norm = torch.stack(torch._foreach_norm(gradients))
    rate = group["eta"] * w_norm / (g_norm + group["weight_decay"] * w_norm + group["eps"])
    share = (rate / group["lr"]).clamp(max=1)  # lr = 0 gives 1
    share = torch.where(w_norm == 0, 1.0, share)
    share = torch.where(g_norm == 0, 0.0, share)  # no gradient, no decay either
    torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
    torch._foreach_mul_(gradients, share.unbind())
    return share


def build_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float, trust: float
) -> torch.optim.Optimizer:
    """The optimizer of that name: LARS; SGD with plain momentum; or AdamW, which has moments of its own."""
    if name == "lars":
        return LARS(parameters, lr, momentum, weight_decay, trust)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def gradients_of(weights: list[Tensor]) -> list[Tensor]:
    """Gradients of the weights that have one."""
    return [w.grad for w in weights if w.grad is not None]


def cosine(progress: float, peak: float) -> float:
    """Learning rate when ``progress`` (in [0, 1]) of the budget is spent: a half cosine wave from peak to 0.

    >>> cosine(0.0, 0.3), cosine(0.5, 0.3), cosine(1.0, 0.3)
    (0.3, 0.15, 0.0)
    """
    return peak * (1 + math.cos(math.pi * progress)) / 2


def warmed(progress: float, share: float, waves: int = 1) -> float:
    """Factor of the learning rate: from 0 to 1 in a straight line over ``share`` of the budget, then half cosine waves.

    >>> warmed(0.05, 0.1), warmed(0.1, 0.1), warmed(1.0, 0.1)
    (0.5, 1.0, 0.0)
    """
    if progress < share:
        return progress / share
    return cosine((progress - share) / (1 - share) * waves, 1.0) if share else cosine(progress * waves, 1.0)
