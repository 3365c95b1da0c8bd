"""A linear probe on the features of the whole image: multinomial logistic regression, one rule for all methods."""

from typing import ClassVar

from bench.protocols.common.probe import LinearProtocol


class Protocol(LinearProtocol):
    """The 4,096-wide layer, as CF-AMC-SSL (arXiv:2501.03507); the probe is that of protocol 1.2."""

    title: ClassVar[str] = "SLF (linear probe)"
    also: ClassVar[str] = "slf"
    ranked: ClassVar[bool] = True
    beside: ClassVar[str] = "linear_backbone"
