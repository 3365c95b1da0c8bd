"""Encoders for inference: batch norm folded into the convolution before it."""

import copy

from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from bench.encoders.common.base import BaseEncoder, Stem


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """A copy for inference with every batch norm folded into the convolution before it; eval mode, frozen.

    The same function up to rounding (1e-6 of a feature), and a tenth less time of an evaluation on digits. An encoder
    that torch.fx cannot trace is returned as it is, and so is one that does not say that it can be (``foldable``): a
    traced copy would freeze whatever it draws or decides.
    """
    encoder = encoder.eval().requires_grad_(False)
    if not all(module.foldable for module in encoder.modules() if isinstance(module, BaseEncoder)):
        return encoder
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, Stem):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]  # torch.fx folds this type only; no bf16 here
    try:
        folded: nn.Module = fuse(plain)
    except (TraceError, NotImplementedError, TypeError):  # control flow that depends on values
        return encoder
    return folded.eval().requires_grad_(False)
