"""Several sets of batch norm in one network: each distribution of images, clean or moved, has statistics of its own.

Xie et al., 2020, arXiv:1911.09665, section 3.2 (auxiliary batch norm); Jiang et al., 2020, arXiv:2010.13337 (ACL).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
BatchNorm = nn.modules.batchnorm._BatchNorm


class Branches(nn.Module):
    """Batch norms of which one is used, ``norms[branch]``. All begin with the same weights."""

    def __init__(self, norm: nn.Module, count: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(count - 1))])
        self.branch = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norms[self.branch](x)
        return out


def branched(module: M, count: int = 2) -> M:
    """The module with ``count`` branches of each of its batch norms, changed in place."""
    for name, norm in [(name, norm) for name, norm in module.named_modules() if isinstance(norm, BatchNorm)]:
        module.set_submodule(name, Branches(norm, count))
    return module


@contextmanager
def branch(module: nn.Module, number: int) -> Iterator[None]:
    """Inside, every batch norm of the module is that of one branch."""
    branches = [norm for norm in module.modules() if isinstance(norm, Branches)]
    before = [norm.branch for norm in branches]
    try:
        for norm in branches:
            norm.branch = number
        yield
    finally:
        for norm, earlier in zip(branches, before, strict=True):
            norm.branch = earlier


@torch.no_grad()
def plain(module: M, number: int) -> M:
    """A copy with the batch norms of one branch alone, its weights named as before there were branches."""
    copied = copy.deepcopy(module)
    for name, norms in [(name, part) for name, part in copied.named_modules() if isinstance(part, Branches)]:
        copied.set_submodule(name, norms.norms[number])
    return copied
