"""What an attack must leave as it was: the model that it attacks, and the process in which it runs.

``Before`` remembers both. After a cell it says what is other than it was, and puts it back, so that every cell starts
from the stored weights. What the model itself leaves behind in a pass is told apart from what the attack did.
"""

import pickle
import random
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

TRACES = {
    "generators": "the global generators",
    "gradients": "which weights want a gradient",
    "modes": "train and eval mode",
    "modules": "modules, their hooks or their forward",
    "settings": "global settings of torch",
    "state": "weights or buffers",
}
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
}


class AttackError(RuntimeError):
    """An attack did what no attack may, or raised: its cell has no number, and the reason is the message."""


class Before:
    """A model and the process as they are now. Holds a copy of the weights, where they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._tensors = named_tensors(model)
        self._copies = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._gradients = wanting(self._tensors)
        self._modes = modes(model)
        self._parts = parts(model)
        self._generators = generators()
        self._drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
        self._settings = {name: get() for name, (get, _) in SETTINGS.items()}
        self._kept = [(module.__dict__, containers(module.__dict__)) for module in self._modules.values()]
        self._everywhere = containers(modules_of_torch.__dict__, "_global_")

    def traces(self) -> list[str]:
        """Which of TRACES are other than before."""
        tensors, drawn = named_tensors(self.model), generators()
        same_names = tensors.keys() == self._copies.keys()
        same = {
            "generators": all(drawn[name] == state for name, state in self._generators.items()),
            "gradients": wanting(tensors) == self._gradients or not same_names,
            "modes": modes(self.model) == self._modes,
            "modules": parts(self.model) == self._parts,
            "settings": {name: get() for name, (get, _) in SETTINGS.items()} == self._settings,
            "state": same_names and all(equal(tensors[name], copy) for name, copy in self._copies.items()),
        }
        return [name for name, unchanged in same.items() if not unchanged]

    def restore(self) -> None:
        """Put everything back: what modules hold, then the values of the tensors, then the process."""
        for own, (plain, inside) in self._kept:
            own.clear()
            own.update(plain)
            refill(inside)
        refill(self._everywhere[1])
        for name, mode in self._modes.items():
            if self._modules[name].training != mode:
                self._modules[name].training = mode
        for name, tensor in self._tensors.items():
            if not equal(tensor, self._copies[name]):
                tensor.data = self._copies[name].clone()
            wants, has_gradient = self._gradients[name]
            if tensor.requires_grad != wants:
                tensor.requires_grad_(wants)
            if not has_gradient:
                tensor.grad = None
        for name, (_, put) in SETTINGS.items():
            put(self._settings[name])
        random.setstate(self._drawn[0])
        np.random.set_state(self._drawn[1])  # noqa: NPY002  # as it was
        for name, state in self._generators.items():
            if name.startswith("torch"):
                device = name.partition(" ")[2]
                rng_state = torch.frombuffer(bytearray(state), dtype=torch.uint8)
                torch.cuda.set_rng_state(rng_state, device) if device else torch.set_rng_state(rng_state)


def blame(before: Before, attack: str, ask: Callable[[], object], attacked: bool = True) -> list[str]:
    """What the model itself leaves behind where it is only asked, by ``ask``; all is put back.

    Raises AttackError for what is other than before and not of the model's own doing: the ``attack`` did it, unless
    nothing was ``attacked``.
    """
    changed = before.traces()
    if not changed:
        return []
    before.restore()
    if not attacked:
        return changed
    ask()
    own = before.traces()
    before.restore()
    theirs = [TRACES[name] for name in changed if name not in own]
    if theirs:
        raise AttackError(f"the attack {attack} changed {' and '.join(theirs)}; they are put back")
    return [name for name in changed if name in own]


# ---------------------------------------------------------------- what is looked at


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def wanting(tensors: dict[str, Tensor]) -> dict[str, tuple[bool, bool]]:
    """Of each tensor whether it wants a gradient, and whether it has one."""
    return {
        name: (tensor.requires_grad, tensor.is_leaf and tensor.grad is not None) for name, tensor in tensors.items()
    }


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def parts(model: nn.Module) -> list[object]:
    """Which modules there are, with which hooks and, where a module has one of its own, which forward."""
    modules: list[object] = [
        (name, id(module), hooks(module.__dict__), id(module.__dict__.get("forward")))
        for name, module in model.named_modules()
    ]
    return [*modules, hooks(modules_of_torch.__dict__)]


def hooks(names: MutableMapping[str, Any]) -> list[tuple[str, list[int]]]:
    return [
        (name, [id(hook) for hook in value.values()])
        for name, value in sorted(names.items())
        if name.endswith("hooks") and isinstance(value, dict)
    ]


def generators() -> dict[str, bytes]:
    """State of each global generator."""
    by_name = {"random": pickle.dumps(random.getstate()), "numpy": pickle.dumps(np.random.get_state())}  # noqa: NPY002
    by_name["torch"] = torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_initialized():
        states = enumerate(torch.cuda.get_rng_state_all())
        by_name |= {f"torch cuda:{number}": state.numpy().tobytes() for number, state in states}
    return by_name


def equal(tensor: Tensor, copy: Tensor) -> bool:
    """To the last bit, also where both are NaN."""
    if (tensor.dtype, tensor.shape, tensor.device) != (copy.dtype, copy.shape, copy.device):
        return False
    return torch.equal(raw(tensor), raw(copy))


def raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


Contents = list[tuple[Any, Any]]


def containers(names: MutableMapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], Contents]:
    """What these names stand for, and of each dict and set among them also what it holds."""
    plain = {name: value for name, value in names.items() if name.startswith(prefix)}
    return plain, [(value, value.copy()) for value in plain.values() if isinstance(value, dict | set)]


def refill(inside: Contents) -> None:
    for container, held in inside:
        container.clear()
        container.update(held)
