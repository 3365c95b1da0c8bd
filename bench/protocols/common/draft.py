"""What a head's training has reached and what it has cost, kept so that one that is killed goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Any]  # of dictionaries, lists, numbers, texts, None and tensors


def forget(states: State) -> None:
    """Where nothing is kept."""


@dataclass
class Draft:
    """The trainings of one fit by their names: how far each has come. ``save`` stores all of them, after each epoch."""

    states: State = field(default_factory=dict)
    save: Callable[[State], None] = forget

    def put(self, training: str, state: State) -> None:
        """Remember how far a training has come, in place of what was known of it."""
        self.states[training] = state
        self.save(self.states)


@dataclass
class Passes:
    """Passes of one image through an encoder: 1 F forward, 1 F for the gradient of the input, 1 F for that of the
    weights (protocol, units of cost)."""

    total: float = 0.0

    @contextmanager
    def counted(self, encoder: nn.Module) -> Iterator[None]:
        """Count what the encoder does inside."""

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            count = 1
            if torch.is_grad_enabled():
                learns = any(parameter.requires_grad for parameter in module.parameters())
                count += 2 if learns else int(args[0].requires_grad)  # on the way to the weights, inner inputs too
            self.total += count * len(args[0])

        hook = encoder.register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()
