"""ACL, dual stream (Jiang et al., 2020, arXiv:2010.13337): SimCLR on clean and on moved pairs.

Ours differs: the projector stands on the feature layer that all methods of this harness share, and its LARS clips.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from bench.ranges import around
from methods.common.base import AdversaryName, BaseConfig, BaseMethod, BatchNormMode, mlp, setting
from methods.common.losses import nt_xent
from methods.common.norms import branch, branched, plain

TITLE = "ACL"
CLEAN, MOVED = 0, 1  # branches of batch norm


@dataclass(frozen=True)
class Config(BaseConfig):
    crop_scale: tuple[float, float] = setting((0.1, 1.0), "code")
    hidden_width: int = setting(512, "code")
    embedding_width: int = setting(512, "code")
    warm_up: float = setting(0.01, "code")  # 10 of 1,000 epochs
    lr: float = setting(5.0, "code")
    weight_decay: float = setting(1e-6, "code")
    trust: float = setting(0.001, "unverified")
    adversary: AdversaryName = setting("pgd", "text")
    step: float = setting(2 / 255, "text")
    random_start: bool = setting(True, "code")
    attack_batch_norm: BatchNormMode = setting("eval", "code")
    temperature: float = setting(0.5, "text", tune=around(5))  # tau

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("views", self.views == 2, "of 2, for a loss of pairs")
        self.check("temperature", self.temperature > 0, "above 0")

    @property
    def traits(self) -> set[str]:
        return super().traits | {"dual"}


class Method(BaseMethod):
    """Each kind of pair has batch norms of its own; both views of the moved one climb its half of the loss."""

    config: Config

    def build(self, width: int) -> None:
        c = self.config
        last = nn.BatchNorm1d(c.embedding_width)  # the projector ends in one
        self.projector = branched(nn.Sequential(mlp(width, c.hidden_width, c.embedding_width), last))
        branched(self.encoder)

    def pair_loss(self, views: Tensor, norms: int) -> Tensor:
        with branch(self, norms):
            return nt_xent(self.embed(views), self.config.temperature)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        return (self.pair_loss(clean, CLEAN) + self.pair_loss(moved, MOVED)) / 2

    def adversarial_loss(self, moved: Tensor, clean: None) -> Tensor:
        return self.pair_loss(moved, MOVED)

    def kept(self) -> nn.Module:
        return plain(self.encoder, MOVED)
