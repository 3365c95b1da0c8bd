"""Method files of a user's."""

METHOD = '''"""Mine."""
from dataclasses import dataclass
from methods import simclr


@dataclass(frozen=True)
class Config(simclr.Config):
    lr: float = 0.25


class Method(simclr.Method):
    def loss(self, views):
        return super().loss(views)
'''


def with_loss(body: str) -> str:
    """A method file whose loss has these lines."""
    return METHOD.replace("return super().loss(views)", body)
