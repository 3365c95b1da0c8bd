"""Momentum teachers: a copy of a network that takes no gradient and follows the weights of what is trained.

Grill et al., 2020, arXiv:2006.07733 (BYOL), section 3; He et al., 2020, arXiv:1911.05722 (MoCo).
"""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def teacher_of(module: M) -> M:
    """A copy of the module without gradients. Its batch norms keep statistics of their own."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, rate: float) -> None:
    """Every weight of the teacher becomes rate times itself and 1 - rate times the student's (BYOL, equation 1)."""
    own: list[Tensor] = [*teacher.parameters()]
    others = [weight.detach() for weight in student.parameters()]
    torch._foreach_lerp_(own, others, 1 - rate)


def rising(progress: float, base: float) -> float:
    """The rate of a teacher: from ``base`` to 1 on half a cosine wave over the share of the budget that is spent.

    >>> rising(0.0, 0.9), rising(0.5, 0.9), rising(1.0, 0.9)
    (0.9, 0.95, 1.0)
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
