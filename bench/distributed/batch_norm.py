"""Batch norm over the images of all ranks: the same statistics, gradients and running buffers as on one device.

torch's own SyncBatchNorm refuses CPU tensors; this is equal on both.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.distributed.ranks import Ranks
from bench.spec import UsageError
from methods.common.losses import widen

BatchNorm = nn.modules.batchnorm._BatchNorm


class Synchronized(BatchNorm):
    """In train mode, statistics of the batches of all ranks together; in eval mode as its base."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        out, mean, var, count = Normalize.apply(x, self.weight, self.bias, self.eps, self.ranks)
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), share)
        return out  # type: ignore[no-any-return]


class Synchronized1d(Synchronized, nn.BatchNorm1d):
    """Of (N, C) or (N, C, L)."""


class Synchronized2d(Synchronized, nn.BatchNorm2d):
    """Of (N, C, H, W)."""


KINDS = {nn.BatchNorm1d: Synchronized1d, nn.BatchNorm2d: Synchronized2d}


class Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias over all ranks: (out, mean (C,), biased var (C,), values ()).

    Two messages of 2C numbers: mean and variance of each rank forward, two sums backward (Ioffe & Szegedy, 2015,
    arXiv:1502.03167, section 3). The gradients of weight and bias are those of the own part.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        own_var, own_mean = torch.var_mean(widen(x), [0, *range(2, x.ndim)], correction=0)
        own_count = own_mean.new_full((1,), x.numel() // channels)
        stacked = ranks.stack(torch.cat([own_mean, own_var, own_count]))
        means, variances, counts = stacked.split([channels, channels, 1], dim=1)
        count = counts.sum()
        shares = counts / count
        mean = (shares * means).sum(dim=0)
        var = (shares * (variances + (means - mean).square())).sum(dim=0)  # within the ranks, and between them
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        # as if the statistics were constants, and the sums over the own part
        through, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        by_statistics = ctx.ranks.sum(torch.cat([by_bias, by_weight])) / count
        constant, slope = by_statistics.chunk(2)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (var + ctx.eps).rsqrt()
        outer = scale if weight is None else scale * weight
        along = (outer * scale * slope).view(shape) * (x - mean.view(shape))
        moved = (through - (outer * constant).view(shape) - along).to(x.dtype)
        wanted = ctx.needs_input_grad
        return moved, by_weight if wanted[1] else None, by_bias if wanted[2] else None, None, None


@contextlib.contextmanager
def synchronized(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, every batch norm of the module sees the images of all ranks. Alone, the module stays as it is.

    Raises UsageError for a kind of batch norm that is not known here.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm) and ranks.size > 1]
    kinds = [type(norm) for norm in norms]
    for kind in kinds:
        if kind not in KINDS:
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise UsageError(
                f"expected a batch norm that can be shared by several ranks ({known}), got {kind.__name__}"
            )
    try:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = KINDS[kind]
            norm.ranks = ranks  # type: ignore[assignment]
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
            del norm.ranks
