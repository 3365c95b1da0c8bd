"""PGD (Madry et al., 2018, arXiv:1706.06083): signed gradient ascent; the best iterate is kept, not the last."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from attacks.common.base import BaseAttack, last_iterate, maximize
from bench.spec import ThreatModel, UsageError


@dataclass(frozen=True)
class Attack(BaseAttack):
    """The one PGD of every ranked number. As published by CF-AMC-SSL: ``absolute_step=0.01, random_start=False,
    best=False``."""

    unwritten: ClassVar[tuple[str, ...]] = ("best",)
    steps: int = 20
    relative_step: float = 0.25  # step / eps, so that one setting serves every eps
    restarts: int = 5
    random_start: bool = True  # False: from the clean image, and then restarts have no meaning
    absolute_step: float | None = None  # in [0, 1] pixel units; replaces relative_step
    best: bool = True  # False: plain PGD from the clean image, the last iterate of every image, whatever it is

    def __post_init__(self) -> None:
        for name in ("steps", "relative_step", "restarts", "absolute_step"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"expected {name} of pgd above 0, got {value}")
        if not self.best and self.random_start:
            raise UsageError("expected best=False of pgd with random_start=False only, got random_start=True")

    def step(self, eps: float) -> float:
        """Length of one step in [0, 1] pixel units."""
        return self.relative_step * eps if self.absolute_step is None else self.absolute_step

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
        attacked: Tensor | None = None,
    ) -> Tensor:
        """As for every attack; ``attacked`` (B,) leaves images out that a smaller eps has broken (see ``maximize``)."""
        if not self.best:
            wanted = slice(None) if attacked is None else attacked.to(images.device)
            moved = images.clone()
            step = self.step(threat.eps)
            moved[wanted] = last_iterate(model, images[wanted], labels[wanted], threat, steps=self.steps, step=step)
            return moved
        return maximize(
            model,
            images,
            labels,
            threat,
            steps=self.steps,
            step=self.step(threat.eps),
            restarts=self.restarts,
            random_start=self.random_start,
            generator=generator,
            attacked=attacked,
        )
