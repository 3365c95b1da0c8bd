"""SimCLR under SGD with a warm-up, its projector at ten times the encoder's learning rate."""

from dataclasses import dataclass

import torch

from methods import simclr
from methods.common.base import setting


@dataclass(frozen=True)
class Config(simclr.Config):
    lr: float = setting(0.03, "own")
    warm_up: float = setting(0.2, "own")


class Method(simclr.Method):
    """The same loss; what is new is how it is descended."""

    def optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        groups = [
            {"params": self.encoder.parameters(), "lr": c.lr},
            {"params": self.projector.parameters(), "lr": 10 * c.lr, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, momentum=c.momentum, weight_decay=c.weight_decay)
