"""SimCLR on clean and on moved pairs, each with batch norms of its own (ACL; Jiang et al., 2020, arXiv:2010.13337)."""

from dataclasses import dataclass

from torch import Tensor, nn

from methods.common.base import AdversaryName, BaseConfig, BaseMethod, mlp, setting
from methods.common.losses import nt_xent
from methods.common.norms import branch, branched, plain

CLEAN, MOVED = 0, 1


@dataclass(frozen=True)
class Config(BaseConfig):
    adversary: AdversaryName = setting("pgd", "own")
    random_start: bool = setting(True, "own")
    temperature: float = setting(0.5, "own")


class Method(BaseMethod):
    """Half of the loss is that of the clean pair; both views of the other pair move together, from a random start."""

    config: Config

    def build(self, width: int) -> None:
        self.projector = branched(mlp(width, self.config.hidden_width, self.config.embedding_width))
        branched(self.encoder)

    def pair_loss(self, views: Tensor, norms: int) -> Tensor:
        with branch(self, norms):
            return nt_xent(self.embed(views), self.config.temperature)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return (self.pair_loss(clean, CLEAN) + self.pair_loss(moved, MOVED)) / 2

    def adversarial_loss(self, moved: Tensor, clean: None) -> Tensor:
        return self.pair_loss(moved, MOVED)

    def kept(self) -> nn.Module:
        """The encoder with the batch norms of what an attack will show it."""
        return plain(self.encoder, MOVED)
