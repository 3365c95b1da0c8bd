"""Whether an encoder would be trained at all, asked in the warm-up: a run that trains nothing is refused by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from bench.spec import UsageError
from bench.training.state import kept_generators
from methods.common.base import BaseMethod

TRIES = 3  # updates: heads that begin at zero let no gradient through before they have moved


class Traced(TorchDispatchMode):
    """Inside, follows what is computed from some tensors; it costs no pass and keeps nothing alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._computed = WeakTensorKeyDictionary()

    def follow(self, tensor: Tensor) -> None:
        """From here on also what is computed from this one."""
        self._computed[tensor] = None

    def reaches(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from those that are followed."""
        return tensor in self._computed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        shape_alone = "_like" in func.__name__ or func.__name__.startswith("new_")
        if not shape_alone and any(isinstance(x, Tensor) and x in self._computed for x in tree_leaves((args, kwargs))):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._computed[leaf] = None
        return out


@contextmanager
def gradients_seen(module: nn.Module) -> Iterator[Callable[[], bool]]:
    """Yields what says, afterwards, whether a gradient that is not zero has come to any weight inside.

    One that is not finite counts too: it is the affair of the training.
    """
    seen: list[Tensor] = []

    def look(weight: Tensor) -> None:
        assert weight.grad is not None
        seen.append(weight.grad.any())

    weights = [weight for weight in module.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(look) for weight in weights]
    try:
        yield lambda: any(map(bool, seen))
    finally:
        for hook in hooks:
            hook.remove()


def check_learning(
    method: BaseMethod, views: Tensor, learns: bool, sees: bool, another: Callable[[], tuple[bool, bool]]
) -> None:
    """Raises UsageError where no gradient reaches the encoder, or the loss is the same for all views.

    ``learns``: whether one did in the first update; ``sees``: whether the loss is known to be computed from the views,
    else it is tried. ``another`` makes one more update and says both of it.
    """
    if not (learns or any(another()[0] for _ in range(TRIES - 1))):
        raise UsageError(
            "nothing would be trained: no gradient of the loss reaches the encoder; let the loss depend on "
            "self.encoder(...) without no_grad, detach or frozen weights"
        )
    if not (sees or depends(method, views)):
        raise UsageError("nothing would be learnt: the loss is the same for all views; let it depend on the views")


def depends(method: BaseMethod, views: Tensor) -> bool:
    """Whether the loss changes with the views (V, B, C, H, W), or has a gradient there."""
    values = []
    for batch in (views, 1 - views):
        with kept_generators(views.device), torch.no_grad():
            values.append(method.objective(batch, batch))
    if not torch.equal(*values):
        return True
    moved = views.detach().requires_grad_()  # two values in bfloat16 may be equal by chance
    (gradient,) = torch.autograd.grad(method.objective(moved, moved), moved, allow_unused=True)
    return gradient is not None and bool(gradient.any())
